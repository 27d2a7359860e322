#!/usr/bin/env python3
"""Kills the daemon at every system call between a first open and its reply, restarts it, and lets others judge.

    crash_matrix.py [--sample N] [--write FILE]

A dry run under strace lists the system calls of the daemon while one new file is opened. Then, for each call and
each of its occurrences, a fresh mount is killed (SIGKILL, injected at the entry of that very call) while it serves
the same open; the private TPM stays, or is killed too. After the restart the log must replay to the PCR
(`imafs verify`, which reads the PCR from the TPM, and `tpm2_pcrread` against the replayed value), the file must be
readable, and in the log exactly once. --sample N: every N-th cell only.
"""
import collections
import os
import re
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'e2e'))
from mounting import Mount  # noqa: E402

# Waiting for work is not part of the path; futex and its like only reorder it.
IGNORED = {'rt_sigtimedwait', 'futex', 'restart_syscall', 'clock_nanosleep', 'exit', 'madvise', 'mprotect', 'mmap', 'munmap', 'brk',
           'clone3', 'set_robust_list', 'rseq', 'rt_sigprocmask', 'sched_yield', 'prctl', 'rt_sigreturn'}


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


class Tracer:
    def __init__(self, mount, *options):
        self.output = mount.work + '/strace'
        self.process = subprocess.Popen(['strace', '-f', '-qq', '-o', self.output, *options, '-p', str(mount.daemon_pid())],
                                        stderr=subprocess.DEVNULL)
        threads = set(os.listdir(f'/proc/{mount.daemon_pid()}/task'))
        for _ in range(200):
            traced = 0
            for thread in threads:
                try:
                    with open(f'/proc/{mount.daemon_pid()}/task/{thread}/status') as status:
                        traced += 'TracerPid:\t0\n' not in status.read()
                except OSError:
                    traced += 1  # it has ended meanwhile
            if traced == len(threads):
                return
            time.sleep(0.01)

    def stop(self):
        try:
            self.process.terminate()
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            self.process.kill()  # it can miss the end of the last thread
            self.process.wait()
        with open(self.output) as calls:
            return calls.read()


def calls_of_an_open():
    mount = prepare()
    try:
        tracer = Tracer(mount)
        read(mount.path + '/new')
        time.sleep(0.05)
        names = re.findall(r'^\d+ +(\w+)\(', tracer.stop(), re.M)
    finally:
        mount.__exit__()
    return collections.Counter(name for name in names if name not in IGNORED)


def replayed_pcr(mount):
    for line in mount.verify().stdout.split('\n'):
        if line.strip().startswith('sha256:10 '):
            return line.split()[1]
    return None


def cell(call, occurrence, tpm_dies):
    """What went wrong, or None; and whether the daemon was killed at all."""
    mount = prepare()
    try:
        tracer = Tracer(mount, '-e', f'trace={call}', '-e', f'inject={call}:signal=SIGKILL:when={occurrence}')
        pid = mount.daemon_pid()
        read(mount.path + '/new')
        tracer.stop()
        killed = not os.path.exists(f'/proc/{pid}') or 'Z' in open(f'/proc/{pid}/stat').read().split(') ')[1][:1]
        if not killed:
            return None, False
        if tpm_dies:
            os.kill(mount.swtpm_pid(), 9)
            time.sleep(0.02)
        mount.stop()
        done = mount.start(check=False)
        if done.returncode != 0:
            return f'restart ended with {done.returncode}: {done.stderr.strip()}', True
        if mount.verify().returncode != 0:
            return 'after the restart: ' + mount.verify().stdout.split('\n')[0], True
        if read(mount.path + '/new') != 'new':
            return 'the file cannot be read', True
        names = mount.names()
        if names.count('/new') != 1 or (names.count('/warm') != 1 and not tpm_dies):
            return f'entries: {names}', True
        value = subprocess.run(['tpm2_pcrread', '-T', mount.status()['options']['tcti'], 'sha256:10'], stdout=subprocess.PIPE, text=True).stdout
        if value.split('0x')[1].strip().lower() != replayed_pcr(mount):
            return 'tpm2_pcrread shows another value', True
        return None, True
    finally:
        mount.__exit__()


def main(arguments):
    sample = int(arguments[arguments.index('--sample') + 1]) if '--sample' in arguments else 1
    if os.geteuid() != 0:
        print('needs root to mount')
        return 77
    calls = calls_of_an_open()
    cells = [(call, occurrence) for call, count in sorted(calls.items()) for occurrence in range(1, count + 1)]
    table, failures = collections.defaultdict(lambda: [0, 0, 0]), []
    for number, (call, occurrence) in enumerate(cells):
        if number % sample:
            continue
        for tpm_dies in (False, True):
            problem, killed = cell(call, occurrence, tpm_dies)
            row = table[call]
            row[0] += killed
            row[1] += killed and problem is None
            row[2] += not killed
            if problem:
                failures.append(f'{call} #{occurrence}, the TPM {"dies too" if tpm_dies else "stays"}: {problem}')
                print(failures[-1], flush=True)
    lines = ['| system call | killed | recovered | not reached |', '|---|---|---|---|']
    lines += [f'| {call} | {killed} | {good} | {missed} |' for call, (killed, good, missed) in sorted(table.items())]
    lines.append(f'| all | {sum(r[0] for r in table.values())} | {sum(r[1] for r in table.values())} | {sum(r[2] for r in table.values())} |')
    print('\n'.join(lines))
    if '--write' in arguments:
        path = arguments[arguments.index('--write') + 1]
        with open(path) as old:
            _, heading, rest = old.read().partition('\n## ')  # the sections that follow are not ours
        with open(path, 'w') as out:
            out.write(HEAD + '\n'.join(lines) + '\n' + heading + rest)
    killed = sum(row[0] for row in table.values())
    return 1 if failures or killed == 0 else 0


HEAD = '''# Crash matrix

The daemon killed (SIGKILL) at the entry of every system call it makes between a first open and its reply, once with the private TPM alive
afterwards and once with it killed too. "Recovered": the restarted daemon's log replays to the PCR by `imafs verify` and by `tpm2_pcrread`, the
file reads, and has exactly one entry. "Not reached": the call did not come that often in that run (threads share the work differently).
Journals torn at each byte are in `tests/measurement_log_test.cpp`. Made by `scripts/crash-matrix`.

'''

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
