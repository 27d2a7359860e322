#!/usr/bin/env python3
"""The short form of scripts/try-machine: the built program and a few tests where people have their checkouts, and every test as
somebody who is not root.

For each condition a copy of the tests and the program, in its own mount namespace, runs what is known to depend on it.
"""
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE + '/e2e')

from mounting import IMAFS, SKIPPED, in_private_mounts, loop_devices_refused, skip_part  # noqa: E402

CONNECTIONS = '/sys/fs/fuse/connections'
PARTS = {
    'measuring': ['e2e/measuring_test.py', 'PlainUser'],
    'limits': ['e2e/limits_test.py', 'Threats.test_the_user_of_a_mount_cannot_attach_to_its_daemon'],
    'default_policy': ['e2e/default_policy_test.py'],
    'semantics': ['e2e/semantics_test.py', 'SmallFileSystem'],
    'attest': ['e2e/attest_test.py', 'Manifests'],
    'bad_input': ['e2e/bad_input_test.py', 'BadInput.test_directories'],
}


def checkout(place):
    """A copy of what tests need, as far as a checkout has it."""
    os.makedirs(place + '/build/test')
    shutil.copy(IMAFS, place + '/build/test/imafs')
    shutil.copytree(HERE, place + '/tests', ignore=shutil.ignore_patterns('__pycache__', 'corpus', 'bench'))
    return place


def run(faults, condition, place, name, words, environment=None, prefix=(), want=0):
    done = subprocess.run([*prefix, sys.executable, f'{place}/tests/{words[0]}', *words[1:]], cwd='/', stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=300, env={**os.environ, 'IMAFS': place + '/build/test/imafs', 'PYTHONDONTWRITEBYTECODE': '1', **(environment or {})})
    if done.returncode != want:
        faults.append(f'{condition}: {name} ended with {done.returncode}, not {want}:\n{done.stdout[-2000:]}')
    elif want == SKIPPED and not any(line.startswith('skipped: ') for line in done.stdout.splitlines()):
        faults.append(f'{condition}: {name} does not say why it is skipped:\n{done.stdout[-2000:]}')


def check_places(faults, closed):
    """A closed home directory, blanks, a umask, a closed TMPDIR, and the locales: all at once, then what may differ by itself."""
    place = checkout(closed + '/a directory/imafs of mine')
    scratch = closed + '/scratch of mine'
    os.mkdir(scratch, 0o700)
    for condition, environment, mask in (('umask 077, TMPDIR, LC_ALL=C', {'TMPDIR': scratch, 'LC_ALL': 'C'}, 0o077), ('LC_ALL=C.UTF-8', {'LC_ALL': 'C.UTF-8'}, 0o022)):
        before = os.umask(mask)
        try:
            for name, words in PARTS.items():
                run(faults, 'a closed home, a path with blanks, ' + condition, place, name, words, environment)
        finally:
            os.umask(before)
        if os.listdir(scratch):
            faults.append(f'{condition}: left in TMPDIR: {os.listdir(scratch)}')


def check_fusectl(faults):
    if loop_devices_refused():
        skip_part('fusectl', loop_devices_refused())
        return
    data = HERE + '/data/golden'
    scenario = sorted(name for name in os.listdir(data) if name.startswith('e-violations') or os.path.exists(f'{data}/{name}/ops'))[0]
    mounted = os.path.ismount(CONNECTIONS)
    for want in (not mounted, mounted):
        if want and not os.path.ismount(CONNECTIONS):
            subprocess.run(['mount', '-t', 'fusectl', 'fusectl', CONNECTIONS], check=True)
        while not want and os.path.ismount(CONNECTIONS):
            subprocess.run(['umount', '-l', CONNECTIONS], check=True)
        run(faults, f'fusectl {"" if want else "not "}mounted', os.path.dirname(HERE), 'golden', ['golden/replay.py', IMAFS, data, scenario], {'IMAFS': IMAFS})


def check_plain_user(faults, work):
    """Every test program that mounts is skipped, with its reason: one that is not would fail for whoever is not root."""
    place = checkout(work + '/checkout')
    subprocess.run(['chmod', '-R', 'a+rX', work], check=True)
    prefix = ['setpriv', '--reuid', 'nobody', '--regid', 'nogroup', '--clear-groups']
    programs = [['e2e/' + name] for name in sorted(os.listdir(place + '/tests/e2e')) if name.endswith('_test.py')]
    programs += [['golden/replay.py', place + '/build/test/imafs', place + '/tests/data/golden'], ['crash/crash_matrix.py', '--sample', '2'], ['machine_test.py']]
    for words in programs:
        run(faults, 'a plain user', place, words[0], words, {'HOME': '/nonexistent'}, prefix, SKIPPED)


def check_setup(faults, work):
    """While another program has dpkg's locks, or root would be needed: setup waits, or says what is missing."""
    # Stands for apt-get: busy twice, then done. What it installs is not the question here.
    fake = work + '/bin'
    os.mkdir(fake)
    for name, text in {
        'apt-get': 'echo "$@" >>"$CALLS"; [ "$(wc -l <"$CALLS")" -gt 2 ] && exit 0; echo "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1 (apt)"; exit 100',
        'dpkg-query': 'exec /usr/bin/dpkg-query "$@" | grep -v "^acl "',
        'id': '[ "$*" = -u ] && echo "${FAKE_UID:-0}" || exec /usr/bin/id "$@"',
    }.items():
        with open(f'{fake}/{name}', 'w') as file:
            file.write('#!/bin/sh\n' + text + '\n')
        os.chmod(f'{fake}/{name}', 0o755)
    calls = work + '/calls'
    open(calls, 'w').close()
    words = [os.path.dirname(HERE) + '/scripts/setup', '--tests']
    environment = {**os.environ, 'PATH': fake + ':/usr/bin:/bin', 'CALLS': calls}
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, timeout=60)
    with open(calls) as file:
        made = file.read()
    if done.returncode != 0 or 'waiting for another program' not in done.stdout or 'install -y --no-install-recommends acl' not in made:
        faults.append(f'setup while dpkg is locked ended with {done.returncode}: {done.stdout}{made}')
    if not shutil.which('sudo', path=environment['PATH']):
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**environment, 'FAKE_UID': '1000'}, timeout=60)
        if done.returncode == 0 or 'root has to install acl' not in done.stdout:
            faults.append(f'setup for a plain user ended with {done.returncode}: {done.stdout}')


def main():
    in_private_mounts()
    faults = []
    with tempfile.TemporaryDirectory(prefix='imafs-machine-') as closed, tempfile.TemporaryDirectory(prefix='imafs-machine-') as work:
        check_places(faults, closed)
        check_fusectl(faults)
        check_plain_user(faults, work)
        check_setup(faults, work)
    print('\n'.join(faults))
    print(f'{len(faults)} faults')
    return 1 if faults else 0


if __name__ == '__main__':
    sys.exit(main())
