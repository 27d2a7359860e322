#!/usr/bin/env python3
"""Kills the daemon at every system call from a first open on, restarts it, and lets others judge.

    crash_matrix.py [--sample N] [--log-faults PROGRAM [--only-log]] [--write FILE]

For k = 1, 2, ... a fresh mount is killed at the entry of the k-th system call that its request threads make after a new file
is opened, until there are no more (those of the close are among them); the private TPM stays, or is killed too. After the
restart the log must replay to the PCR (`imafs verify`, which reads the PCR from the TPM, and `tpm2_pcrread` against the
replayed value), the file must be readable, and in the log exactly once. --sample N: every N-th call only.
--log-faults: runs log_faults_test, too, whose tables are those of operations of the log against the n-th call that fails.
"""
import collections
import itertools
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'e2e'))
from killer import kill_at  # noqa: E402
from mounting import Mount, need_mounts  # noqa: E402


def prepare():
    mount = Mount()
    mount.start()
    for name in ('warm', 'new'):
        with open(f'{mount.backing}/{name}', 'w') as file:
            file.write(name)
    read(mount.path + '/warm')
    time.sleep(0.05)
    return mount


def read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None


def replayed_pcr(mount):
    for line in mount.verify().stdout.split('\n'):
        if line.strip().startswith('sha256:10 '):
            return line.split()[1]
    return None


def cell(position, tpm_dies):
    """The system call, or None if there are fewer; and what went wrong, or None."""
    mount = prepare()
    try:
        call = kill_at(mount.daemon_pid(), position, lambda: read(mount.path + '/new'))
        if not call:
            return None, None
        return call, fault_after(mount, tpm_dies)
    finally:
        mount.__exit__()


def fault_after(mount, tpm_dies):
    if tpm_dies:
        os.kill(mount.swtpm_pid(), 9)
        time.sleep(0.02)
    mount.stop()
    done = mount.start(check=False)
    if done.returncode != 0:
        return f'restart ended with {done.returncode}: {done.stderr.strip()}'
    if mount.verify().returncode != 0:
        return 'after the restart: ' + mount.verify().stdout.split('\n')[0]
    if read(mount.path + '/new') != 'new':
        return 'the file cannot be read'
    names = mount.names()
    if names.count('/new') != 1 or (names.count('/warm') != 1 and not tpm_dies):
        return f'entries: {names}'
    value = subprocess.run(['tpm2_pcrread', '-T', mount.status()['options']['tcti'], 'sha256:10'], stdout=subprocess.PIPE, text=True).stdout
    if value.split('0x')[1].strip().lower() != replayed_pcr(mount):
        return 'tpm2_pcrread shows another value'
    return None


def log_faults(program):
    """The rows of its tables as one: (fault, operation) and how many moments there were; None if one of them failed."""
    done = subprocess.run([program, '[matrix]'], stdout=subprocess.PIPE, text=True, env={**os.environ, 'IMAFS_FULL_MATRIX': '1'})
    if done.returncode != 0:
        print(done.stdout)
        return None
    return [line for line in done.stdout.split('\n') if line.startswith('| ')]


def write_section(path, heading, text):
    """Puts a section of the document in the place of the one with this heading, or at the end."""
    with open(path) as old:
        parts = old.read().rstrip('\n').split('\n## ')
    parts = [part for part in parts if not part.startswith(heading + '\n')] + [f'{heading}\n\n{text}']
    with open(path, 'w') as out:
        out.write('\n## '.join(part.rstrip('\n') + '\n' for part in parts))


def main(arguments):
    rows = log_faults(arguments[arguments.index('--log-faults') + 1]) if '--log-faults' in arguments else []
    if rows is None:
        return 1
    if rows and '--write' in arguments:
        write_section(arguments[arguments.index('--write') + 1], LOG_HEADING, LOG_HEAD + '\n'.join(rows))
    if '--only-log' in arguments:
        return 0
    sample = int(arguments[arguments.index('--sample') + 1]) if '--sample' in arguments else 1
    need_mounts()
    table, failures = collections.defaultdict(lambda: [0, 0]), []
    # Which thread takes which request differs, and shifts positions: once is not enough to meet each call.
    for tpm_dies in (False, True) * (4 if sample == 1 else 1):
        for position in itertools.count(1, sample):
            call, problem = cell(position, tpm_dies)
            if not call:
                break
            table[call][0] += 1
            table[call][1] += problem is None
            if problem:
                failures.append(f'call {position}, {call}, the TPM {"dies too" if tpm_dies else "stays"}: {problem}')
                print(failures[-1], flush=True)
    table['all'] = [sum(row[column] for row in table.values()) for column in (0, 1)]
    lines = ['| system call | killed | recovered |', '|---|---|---|']
    lines += [f'| {call} | {killed} | {good} |' for call, (killed, good) in sorted(table.items(), key=lambda row: (row[0] == 'all', row[0]))]
    print('\n'.join(lines))
    if '--write' in arguments:
        path = arguments[arguments.index('--write') + 1]
        with open(path) as old:
            _, heading, rest = old.read().partition('\n## ')  # the sections that follow are not ours
        with open(path, 'w') as out:
            out.write(HEAD + '\n'.join(lines) + '\n' + heading + rest)
    return 1 if failures or table['all'][0] == 0 else 0


HEAD = '''# Crash matrix

The daemon killed (SIGKILL) at the entry of the first, second, ... system call that its request threads make from a first open to the end of its close, until
there were no more; four times with the private TPM alive afterwards and four times with it killed too. "Recovered": the restarted daemon's log replays to the PCR by `imafs verify` and
by `tpm2_pcrread`, the file reads, and has exactly one entry.
Journals torn at each byte are in `tests/measurement_log_test.cpp`. Made by `scripts/crash-matrix`.

'''

LOG_HEADING = 'Faults inside the log'
LOG_HEAD = '''`tests/log_faults_test.cpp`: an operation of the log, and the n-th call of a kind that fails, for n = 1, 2, ... until the operation ends without meeting it. After
each, what was logged before and what was promised is there once, also a violation for which the operation got an error; the log and its archives replay, a further
entry is logged, and a new start finds the same. For damaged bytes: the start is refused, readers get an error, and the file is as it was. "Moments": how many n there were; all of them were good.

| what fails | operation | moments |
|---|---|---|
'''

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
