#!/usr/bin/env python3
"""Replays scenarios captured on a kernel with a TPM on an imafs mount, and compares what happens.

    replay.py IMAFS DATA [SCENARIO...]     --list: their names; --accept: print the differences as exceptions

Compared are the transcript (results, errors, log lines, violations, policy read-backs) and the log of every
bank, as text and as binary records. Differences that a file system cannot avoid are listed in exceptions.txt,
line for line and with their reason; any other difference, and an exception that does not occur, is a failure.
Needs root: it mounts an ext4 image, and imafs at /mnt in a mount namespace of its own.
"""
import difflib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time

from interpreter import Interpreter

HERE = os.path.dirname(os.path.abspath(__file__))
MOUNT = '/mnt'
CONNECTIONS = '/sys/fs/fuse/connections'
UUID = '11111111-2222-3333-4444-555555555555'
OTHER_UUID = '22222222-3333-4444-5555-666666666666'
BANKS = ('sha1', 'sha256', 'sha384', 'sha512')
DIGEST_SIZE = {'sha1': 20, 'sha256': 32, 'sha384': 48, 'sha512': 64}
SKIPPED = 77


def run(*words):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def options_of(meta):
    """The mount options that stand for a scenario's kernel command line."""
    policy, options = 'builtin:none', []
    for word in meta['cmdline'].split():
        key, _, value = word.partition('=')
        if key == 'ima_template':
            options += ['--template', value]
        elif key == 'ima_template_fmt':
            options += ['--template-fmt', value]
        elif key == 'ima_hash':
            options += ['--hash', value]
        elif key == 'ima_policy':
            policy = 'builtin:' + value
        elif key == 'ima_tcb':
            policy = 'builtin:ima_tcb'
    return options + ['--policy', policy]


def read_meta(path):
    with open(path) as lines:
        return dict(line.rstrip('\n').split(': ', 1) if ': ' in line else (line.strip().rstrip(':'), '') for line in lines)


def make_tree(image, uuid, files, target):
    run('truncate', '-s', '200M', image)
    features = ['-O', 'verity,^has_journal'] if uuid == UUID else ['-O', '^has_journal']
    run('mkfs.ext4', '-q', '-U', uuid, *features, '-d', files, image)
    os.mkdir(target)
    run('mount', '-o', 'loop', image, target)


def records_of(log, bank):
    """The records of a binary log, cut at their lengths."""
    records, at, size = [], 0, DIGEST_SIZE[bank]
    while at < len(log):
        start = at
        at += 4 + size
        name_size, = struct.unpack_from('<I', log, at)
        name = log[at + 4:at + 4 + name_size]
        at += 4 + name_size
        if name == b'ima':
            at += 20 if records_of.legacy_digest == 20 else 16
            name_size, = struct.unpack_from('<I', log, at)
            at += 4 + name_size
        else:
            data_size, = struct.unpack_from('<I', log, at)
            at += 4 + data_size
        records.append(log[start:at])
    return records


records_of.legacy_digest = 20


def comparable(transcript):
    """Lines of a transcript that do not depend on the machine: not on PCR 0 to 9, nor on its kernel's name."""
    dependent = (b' boot_aggregate', b'imah rc', b'cat /proc/version', b' kernel_version ')
    return [line for line in transcript.split(b'\n') if not any(word in line for word in dependent)]


def differences(want, got):
    lines = difflib.ndiff([line.decode('latin-1') for line in want], [line.decode('latin-1') for line in got])
    return [line[0] + line[2:] for line in lines if line[0] in '+-']


def read(path):
    with open(path, 'rb') as source:
        return source.read()


def exceptions():
    """The expected differences of each scenario."""
    found, current = {}, None
    with open(HERE + '/exceptions.txt', encoding='utf-8') as lines:
        for line in lines:
            line = line.rstrip('\n')
            if line.startswith('['):
                current = found.setdefault(line[1:-1], [])
            elif line[:1] in ('+', '-'):
                current.append(line)
    return found


def settle(device):
    """Waits until no request is on its way to the daemon: close(2) does not wait for its RELEASE."""
    for _ in range(1000):
        if int(read(f'{CONNECTIONS}/{os.minor(device)}/waiting')) == 0:
            return
        time.sleep(0.001)


def replay(imafs, data, name, work):
    """The differences between a scenario and what imafs makes of it."""
    scenario = f'{data}/{name}'
    make_tree(work + '/image', UUID, data + '/files/t1', work + '/tree')
    options = options_of(read_meta(scenario + '/meta'))
    run(imafs, MOUNT, '--backing', work + '/tree', '--path-prefix', MOUNT, '--state', work + '/state', '--log-file',
        work + '/messages', *options)
    try:
        def rewrite(word):
            for old, new in ((b'/scn/meta', scenario.encode() + b'/meta'), (b'/sys/kernel/security/integrity/ima', b'/mnt/.ima'), (b'/sys/kernel/security/ima', b'/mnt/.ima'),
                             (b'/scn/', data.encode() + b'/common/')):
                word = word.replace(old, new)
            return word

        with open(work + '/transcript', 'wb') as out:
            device = os.stat(MOUNT).st_dev
            interpreter = Interpreter(MOUNT, MOUNT + '/.ima', out, rewrite, lambda: settle(device))
            os.umask(0o022)
            os.chdir(MOUNT)
            interpreter.run(scenario + '/ops')
            os.chdir('/')
        found = differences(comparable(read(scenario + '/transcript.txt')), comparable(read(work + '/transcript').replace(data.encode() + b'/common/', b'/scn/')))
        if not found:
            found += compare_logs(scenario)
        verdict = subprocess.run([imafs, 'verify', MOUNT], stdout=subprocess.PIPE, text=True)
        if verdict.returncode != 0:
            found.append('+verify: ' + verdict.stdout)
        return found
    finally:
        os.chdir('/')
        subprocess.run(['umount', MOUNT])
        for _ in range(50):
            if subprocess.run(['umount', work + '/tree'], stderr=subprocess.DEVNULL).returncode == 0:
                break
            time.sleep(0.1)


def compare_logs(scenario):
    """With equal transcripts the files of every bank must be equal too, but for boot_aggregate."""
    found = []
    for bank in BANKS:
        for form in ('ascii', 'binary'):
            name = f'{form}_runtime_measurements_{bank}'
            want, got = read(f'{scenario}/{name}'), read(f'{MOUNT}/.ima/{name}')
            split = (lambda log: log.split(b'\n')) if form == 'ascii' else (lambda log: records_of(log, bank))
            want, got = ([part for part in split(log)[1:] if b'kernel_version' not in part] for log in (want, got))
            if want != got:
                found.append(f'+{name} differs')
    return found


def main(arguments):
    accept = '--accept' in arguments
    arguments = [word for word in arguments if word != '--accept']
    imafs, data = os.path.abspath(arguments[0]), os.path.abspath(arguments[1])
    names = arguments[2:] or sorted(name for name in os.listdir(data) if os.path.exists(f'{data}/{name}/ops'))
    if names == ['--list']:
        print('\n'.join(sorted(name for name in os.listdir(data) if os.path.exists(f'{data}/{name}/ops'))))
        return 0
    if os.geteuid() != 0:
        print('needs root to mount')
        return SKIPPED
    if os.environ.get('IMAFS_REPLAY_NAMESPACE') != '1':
        os.environ['IMAFS_REPLAY_NAMESPACE'] = '1'
        os.execvp('unshare', ['unshare', '--mount', '--propagation', 'private', sys.executable, *sys.argv])
    if not os.listdir(CONNECTIONS):
        run('mount', '-t', 'fusectl', 'fusectl', CONNECTIONS)  # for this mount namespace
    expected, failed = exceptions(), 0
    for name in names:
        work = tempfile.mkdtemp(prefix='imafs-golden-')
        try:
            found = replay(imafs, data, name, work)
        finally:
            subprocess.run(['umount', work + '/tree'], stderr=subprocess.DEVNULL)
            shutil.rmtree(work, ignore_errors=True)
        if accept and found:
            print(f'[{name}]\n' + '\n'.join(found))
            continue
        listed = expected.get(name, [])
        unexpected = [line for line in found if line not in listed]
        absent = [line for line in listed if line not in found]
        print(f'{name}: ' + ('equal' if not found else f'{len(found)} lines differ, as listed') if not unexpected and not absent
              else f'{name}: FAILED')
        for line in unexpected[:20]:
            print('  unexpected: ' + line)
        for line in absent[:20]:
            print('  expected and not seen: ' + line)
        failed += bool(unexpected or absent)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
