#!/usr/bin/env python3
"""Everything at once on four file systems: readers of the mount, writers through it and outside it, policy changes, trims,
quotes, SIGKILL of the daemon and of its swtpm, a full disk that gets room again. After each fault the log replays to the
PCR, and at the end every read is accounted for. SECONDS (60; scripts/soak: 1800) is the time for all of them, SEED the
order of the faults."""
import bisect
import contextlib
import datetime
import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import tempfile
import time
import unittest

from mounting import IMAFS, Mount, need_mounts

SECONDS = float(os.environ.get('SECONDS', '60'))
SEED = int(os.environ.get('SEED', time.time_ns() % 100000))
KINDS = ('ext4', 'xfs', 'btrfs', 'tmpfs')
FILES = 8
POLICY = '''measure func=CRITICAL_DATA label=imafs
measure func=BPRM_CHECK mask=MAY_EXEC
measure func=FILE_CHECK mask=^MAY_READ
'''


@contextlib.contextmanager
def file_system(kind, directory):
    """A file system of this kind at `directory`; False if this kernel has none."""
    os.mkdir(directory)
    source = ['none']
    if kind != 'tmpfs':
        image = directory + '.image'
        with open(image, 'wb') as file:
            file.truncate(400 << 20)
        subprocess.run(['mkfs.' + kind, '-q', image], check=True, stdout=subprocess.DEVNULL)
        source = ['-o', 'loop', image]
    mounted = subprocess.run(['mount', '-t', kind, *source, directory], stderr=subprocess.DEVNULL).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(['umount', '-l', directory], stderr=subprocess.DEVNULL)  # unless the end of the mount did


def content(writer, number):
    return f'{writer}.{number};'.encode() * random.randrange(50, 1500)


def write_on(directory, writer, seed, stop, results):
    """Writes states that nobody wrote before; answers when each file was open for writing: [(name, from, to)]."""
    random.seed(seed)
    phases, number = [], 0
    while not stop.is_set():
        number += 1
        name = f'f{random.randrange(FILES)}'
        begun = time.time()
        with contextlib.suppress(OSError):
            if random.random() < 0.2:
                fresh = f'{directory}/{name}.{writer}'
                with open(fresh, 'wb') as file:
                    file.write(content(writer, number))
                os.rename(fresh, f'{directory}/{name}')
            else:
                fd = os.open(f'{directory}/{name}', os.O_WRONLY)
                try:
                    data = content(writer, number)
                    os.write(fd, data)
                    time.sleep(random.random() * 0.002)
                    os.ftruncate(fd, len(data))
                finally:
                    os.close(fd)
        phases.append((name, begun, time.time()))
        time.sleep(random.random() * 0.02)
    results.put(phases)


def read_on(mount, seed, stop, results):
    """Answers what was read: [(name, sha256, from, to)]."""
    random.seed(seed)
    seen = []
    while not stop.is_set():
        name = f'f{random.randrange(FILES)}'
        begun = time.time()
        try:
            with open(f'{mount}/{name}', 'rb') as file:
                time.sleep(random.choice((0, 0.0005, 0.003)))
                data = file.read()
        except OSError:
            time.sleep(0.005)  # denied, or there is no mount just now
            continue
        seen.append((name, hashlib.sha256(data).hexdigest(), begun, time.time()))
        time.sleep(random.random() * 0.002)
    results.put(seen)


def imafs(*words):
    return subprocess.run([IMAFS, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120)


class Faults:
    """What is done to the mount meanwhile. Each leaves a log that replays, or says what went wrong."""

    def __init__(self, case, mount):
        self.case = case
        self.mount = mount
        self.deaths = []  # of the daemon: [(from, to)]; while it is dead nothing that stays open is watched
        self.counts = {}
        self.rules = 0

    def one(self):
        name = random.choice(('change_policy', 'trim', 'quote', 'kill_daemon', 'kill_swtpm', 'fill_disk'))
        getattr(self, name)()
        self.counts[name] = self.counts.get(name, 0) + 1
        self.replays(name)

    def replays(self, after):
        done = None
        for _ in range(100):
            done = self.mount.verify()
            if done.returncode == 0:
                return
            time.sleep(0.1)  # a swtpm that was killed is started again by the next entry
        self.case.fail(f'after {after} the log does not replay: {done.stdout}{done.stderr}')

    def change_policy(self):
        self.rules += 1
        with open(self.mount.path + '/.ima/policy', 'w') as policy:
            policy.write(f'measure func=FILE_CHECK mask=^MAY_READ path=/none/{self.rules}\n')

    def trim(self):
        done = imafs('log', 'trim', self.mount.path, '--keep', str(random.randrange(20)))
        self.case.assertEqual(0, done.returncode, done.stdout + done.stderr)

    def quote(self):
        with tempfile.TemporaryDirectory() as work:
            evidence = work + '/evidence'
            done = imafs('quote', self.mount.path, '--nonce', 'abcd', '-o', evidence)
            self.case.assertEqual(0, done.returncode, done.stdout + done.stderr)
            # No key was enrolled: at best incomplete, but whatever is compared fits.
            verdict = imafs('verify', '--quote', evidence, '--nonce', 'abcd')
            self.case.assertNotEqual(1, verdict.returncode, verdict.stdout + verdict.stderr)

    def kill_daemon(self):
        begun = time.time()
        os.kill(self.mount.daemon_pid(), signal.SIGKILL)
        self.mount.wait_for_end()
        subprocess.run(['umount', '-l', self.mount.path], check=True)
        self.mount.start()
        self.deaths.append((begun, time.time()))

    def kill_swtpm(self):
        os.kill(self.mount.swtpm_pid(), signal.SIGKILL)
        time.sleep(0.3)

    def fill_disk(self):
        ballast = self.mount.state + '/ballast'
        try:
            with contextlib.suppress(OSError), open(ballast, 'wb', buffering=0) as file:
                while True:
                    file.write(bytes(1 << 20))
            time.sleep(0.5)
        finally:
            os.unlink(ballast)


def logged(state):
    """(entries, violations) of all logs there were: {(name, digest)}, {name: sorted times}."""
    entries, violations = set(), {}
    archives = [os.path.join(state, 'archive', name) for name in sorted(os.listdir(state + '/archive'))] if os.path.isdir(state + '/archive') else []
    for directory in (*archives, state + '/journal'):
        done = imafs('log', directory, '--format', 'ndjson')
        if done.returncode != 0:
            raise AssertionError(f'{directory}: {done.stderr}')
        for line in done.stdout.splitlines():
            entry = json.loads(line)
            name = entry['name'].lstrip('/').split('.')[0]
            if entry['violation']:
                seconds, _, rest = entry['time'].partition('.')
                at = datetime.datetime.fromisoformat(seconds + '+00:00').timestamp() + float('0.' + rest.rstrip('Z'))
                violations.setdefault(name, []).append(at)
            else:
                entries.add((name, entry['digest'].partition(':')[2]))
    for times in violations.values():
        times.sort()
    return entries, violations


def silent(reads, phases, deaths, entries, violations):
    """Reads that neither an entry nor a violation accounts for. A writer of the mount is one violation for all that
    read while it writes: then one since its open counts."""
    found = []
    for name, digest, begun, ended in reads:
        if (name, digest) in entries or any(dead <= ended and begun <= back for dead, back in deaths):
            continue
        since = min([begun, *(start for writes, start, end in phases if writes == name and start <= ended and begun <= end + 0.1)])
        times = violations.get(name, [])
        if bisect.bisect_left(times, since - 0.005) == len(times):
            found.append((name, digest, begun, ended))
    return found


class Soak(unittest.TestCase):
    def soak(self, kind, seconds):
        context = multiprocessing.get_context('fork')
        with tempfile.TemporaryDirectory(prefix='imafs-soak-') as work, contextlib.ExitStack() as stack:
            if not stack.enter_context(file_system(kind, work + '/tree')):
                self.skipTest(f'this kernel cannot mount {kind}')
            os.mkdir(work + '/state')
            subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=96m', 'none', work + '/state'], check=True)
            with open(work + '/policy', 'w') as policy:
                policy.write(POLICY)
            mount = Mount('--policy', work + '/policy', work=work)
            for i in range(FILES):
                with open(f'{mount.backing}/f{i}', 'w') as file:
                    file.write(f'first {i}')
            stop, phases, outside, reads = context.Event(), context.Queue(), context.Queue(), context.Queue()
            workers = [context.Process(target=write_on, args=(mount.path, 'mount', SEED + 1, stop, phases)),
                       context.Process(target=write_on, args=(mount.backing, 'outside', SEED + 2, stop, outside)),
                       *(context.Process(target=read_on, args=(mount.path, SEED + 3 + i, stop, reads)) for i in range(2))]
            with mount:
                faults = Faults(self, mount)
                try:
                    for worker in workers:
                        worker.start()
                    until = time.monotonic() + seconds
                    while time.monotonic() < until:
                        time.sleep(random.random() * 0.5)
                        faults.one()
                finally:
                    stop.set()
                    seen = [read for _ in range(2) for read in reads.get(timeout=60)]
                    writes = phases.get(timeout=60)
                    outside.get(timeout=60)
                    for worker in workers:
                        worker.join()
                faults.replays('the end')
                mount.stop()
                done = imafs('verify', '--state', mount.state)
                self.assertIn(done.returncode, (0, 2), done.stdout + done.stderr)  # 2: the TPM is gone with the mount
                entries, violations = logged(mount.state)
            missing = silent(seen, writes, faults.deaths, entries, violations)
            print(f'{kind}: seed {SEED}, {len(seen)} reads, {len(writes)} writes through the mount, {len(entries)} states logged, '
                  f'{sum(map(len, violations.values()))} violations; {faults.counts}', flush=True)
            self.assertGreater(len(seen), 0)
            self.assertEqual([], missing)


for number, one in enumerate(KINDS):
    def test(self, kind=one, order=number):
        random.seed(SEED + 100 * order)
        self.soak(kind, SECONDS / len(KINDS))
    setattr(Soak, 'test_' + one, test)


if __name__ == '__main__':
    need_mounts()
    unittest.main(verbosity=2)
