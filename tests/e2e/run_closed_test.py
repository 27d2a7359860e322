#!/usr/bin/env python3
"""imafs run: no way past the measuring from inside, and nothing lost or left whoever is killed when."""
import ctypes
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import uuid

from mounting import IMAFS, need_mounts

KILLS = int(os.environ.get('IMAFS_RUN_KILLS', '21'))
FILES = 1000

# Opens the file of handle 1's inode from the file system that descriptor 1 is on.
BY_HANDLE = '''
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
kind, data = int(sys.argv[1]), bytes.fromhex(sys.argv[2])
handle = ctypes.create_string_buffer(struct.pack('Ii', len(data), kind) + data)
fd = libc.open_by_handle_at(1, handle, os.O_RDONLY)
if fd >= 0:
    os.write(2, os.read(fd, 4096))
'''


def handle_of(path):
    libc = ctypes.CDLL(None, use_errno=True)
    memory, mount = ctypes.create_string_buffer(8 + 128), ctypes.c_int()
    ctypes.c_uint.from_buffer(memory).value = 128
    if libc.name_to_handle_at(-100, path.encode(), memory, ctypes.byref(mount), 0) != 0:
        raise unittest.SkipTest('the file system has no handles')
    size, kind = ctypes.c_uint.from_buffer(memory).value, ctypes.c_int.from_buffer(memory, 4).value
    return str(kind), memory.raw[8:8 + size].hex()


class Inside(unittest.TestCase):
    def setUp(self):
        self.work = tempfile.mkdtemp(prefix='imafs-run-', dir='/var/tmp')
        self.addCleanup(shutil.rmtree, self.work)
        self.attestation = self.work + '/attestation'

    def run_it(self, *command, words=(), check=0, **more):
        done = subprocess.run([IMAFS, 'run', '--attest', self.attestation, *words, '--', *command], cwd=self.work, timeout=60,
                              stdout=more.pop('stdout', subprocess.PIPE), stderr=more.pop('stderr', subprocess.PIPE), **more)
        if check is not None:
            self.assertEqual(check, done.returncode, done.stderr)
        return done

    def attested(self):
        with open(self.attestation) as file:
            return file.read()

    def test_whatever_way_a_file_is_read_its_digest_is_there(self):
        secret = self.work + '/secret'
        reopened = 'for p in /proc/[0-9]*; do for w in root cwd; do cat "$p/$w$1" "$p/$w/secret"; done; for f in 0 3 4 5 6 7 8 9; do timeout 0.2 head -c 99 "$p/fd/$f"; done; done'
        outside = subprocess.Popen(['sleep', '100'], cwd=self.work)
        self.addCleanup(outside.wait)
        self.addCleanup(outside.kill)
        directory = os.open(self.work, os.O_RDONLY)
        self.addCleanup(os.close, directory)
        ways = {'by its name': {'command': ['cat', secret]},
                'by the root, directory and descriptors of every process there is': {'command': ['sh', '-c', reopened, 'sh', secret]},
                'by a process outside': {'command': ['cat', f'/proc/{outside.pid}/root{secret}', f'/proc/{outside.pid}/cwd/secret', f'/proc/{os.getpid()}/root{secret}']},
                'by an inherited descriptor': {'command': ['sh', '-c', 'cat <&7; cat /proc/self/fd/7; cat /proc/1/fd/7'], 'inherits': 7},
                'by a high descriptor': {'command': ['sh', '-c', 'cat /proc/self/fd/200 /proc/1/fd/200'], 'inherits': 200},
                'by standard input': {'command': ['cat'], 'stdin': secret},
                'by the file behind standard input': {'command': ['cat', '/proc/self/fd/0', '/dev/stdin'], 'stdin': secret},
                'by a directory as standard input': {'command': ['sh', '-c', 'cat /proc/self/fd/0/secret /proc/self/fd/0/../*/secret'], 'stdin': self.work},
                'by a handle': {'command': [sys.executable, '-c', BY_HANDLE], 'handle': True},
                'by a copy in the private directories': {'command': ['sh', '-c', 'cp secret /tmp/c && cat /tmp/c; cp secret /dev/shm/c && cat /dev/shm/c']},
                'after unmounting all': {'command': ['sh', '-c', 'for m in /proc /sys /dev/shm /dev/pts /dev /tmp / ; do umount -l $m; done; cat secret; ls /var/lib/imafs/run; cat /proc/1/root"$1"', 'sh', secret]},
                'in a new namespace': {'command': ['unshare', '-m', 'sh', '-c', 'umount -R /proc; mount -t proc proc /proc; cat "$1" /proc/1/root"$1"', 'sh', secret]},
                'with another policy': {'command': ['sh', '-c', 'echo dont_measure > /.ima/policy_replace; echo dont_measure > /.ima/policy; cat secret; cat /.ima/policy > /.ima/policy_replace']},
                'and trimmed': {'command': ['sh', '-c', 'cat secret; wc -l < /.ima/measurements > n; cat n > /.ima/trim_log; cat secret']},
                'in the background': {'command': ['sh', '-c', '(sleep 0.2; cat secret; cat secret >copy) & exit 0']}}
        for way, row in ways.items():
            with self.subTest(way):
                text = f'secret of {way} {uuid.uuid4()}'
                with open(secret, 'w') as file:
                    file.write(text)
                for name in ('copy', 'out'):
                    if os.path.exists(f'{self.work}/{name}'):
                        os.unlink(f'{self.work}/{name}')
                more, command = {}, row['command']
                if 'stdin' in row:
                    more['stdin'] = os.open(row['stdin'], os.O_RDONLY)
                if 'inherits' in row:
                    opened = os.open(secret, os.O_RDONLY)
                    os.dup2(opened, row['inherits'])
                    os.close(opened)
                    more['pass_fds'] = (row['inherits'],)
                if row.get('handle'):
                    command = [*command, *handle_of(secret)]
                with open(self.work + '/out', 'wb') as out:
                    done = self.run_it(*command, check=None, stdout=out, **more)
                for descriptor in (more.get('stdin'), row.get('inherits')):
                    if descriptor is not None:
                        os.close(descriptor)
                with open(self.work + '/out', 'rb') as out:
                    was_read = text.encode() in out.read() + done.stderr or os.path.exists(self.work + '/copy')
                complete = hashlib.sha256(text.encode()).hexdigest() in self.attested() if os.path.exists(self.attestation) else done.returncode != 0
                self.assertTrue(complete or not was_read, done.stderr)
                if way in ('by its name', 'by standard input', 'by the file behind standard input'):
                    self.assertTrue(was_read and complete, done.stderr)
                if os.path.exists(self.attestation):
                    os.unlink(self.attestation)

    def test_the_control_directory_is_read_only(self):
        script = ('for f in policy policy_replace trim_log critical_data/l/n critical_data_hash/l/n status; do echo x 2>/dev/null > /.ima/$f && echo $f written; '
                  'done; rm -rf /.ima; mv /.ima /x; chmod 777 /.ima; ln /.ima/policy /y; head -c 10 /.ima/measurements; cat /.ima/policy | head -1')
        before = self.run_it('sh', '-c', script).stdout.decode()
        self.assertNotIn('written', before)
        self.assertRegex(before, r'^10 [0-9a-f]{7}')
        with open(self.attestation) as file:
            policy = json.load(file)['predicate']['monitor']['tracePolicy']
        self.assertIn('measure', policy['policy'])
        for word in ('device', 'network', '/proc', 'descriptor'):
            self.assertTrue(any(word in what for what in policy['notCovered']), word)

    def test_devices_and_shared_memory_are_its_own(self):
        name = f'imafs-test-{uuid.uuid4().hex}'
        with open('/dev/shm/' + name, 'w') as file:
            file.write('outside')
        self.addCleanup(os.unlink, '/dev/shm/' + name)
        done = self.run_it('sh', '-c', f'ls /dev /dev/shm; echo x > /dev/shm/{name}-2; cat /dev/shm/{name}; echo ok > /dev/null; head -c 3 /dev/zero | wc -c; ipcs -m | wc -l')
        self.assertNotIn(b'outside', done.stdout)
        self.assertIn(b'\n3\n', done.stdout)
        self.assertFalse(os.path.exists(f'/dev/shm/{name}-2'))
        self.assertNotRegex(done.stdout, rb'(?m)^(sd|vd|nvme|loop|mem|kmsg|tpm)')

    def test_the_log_and_the_tpm_of_the_run_are_not_in_its_tree(self):
        for words in ((), ('--state', self.work + '/state')):
            done = self.run_it('sh', '-c', 'find /var/lib/imafs/run "$1" -type f -o -type s | grep -v attestation-; touch "$1/made"; true',
                               'sh', self.work + '/state', words=words)
            self.assertEqual(b'', done.stdout)
        self.assertTrue(os.path.exists(self.work + '/state/journal'))
        self.assertFalse(os.path.exists(self.work + '/state/made'))
        self.run_it('true', words=('--state', self.work + '/state'))  # and once more

    def test_a_shared_standard_input_goes_on_where_the_command_left_off(self):
        with open(self.work + '/lines', 'w') as file:
            file.write(''.join(f'{i}\n' for i in range(5)))
        done = subprocess.run(['sh', '-c', '{ "$0" run -- sh -c "read a; read b; echo \\$b"; cat; } <lines', IMAFS], cwd=self.work, stdout=subprocess.PIPE, text=True)
        self.assertEqual('1\n2\n3\n4\n', done.stdout)

    def test_an_error_found_late_takes_neither_the_status_nor_the_evidence(self):
        made = self.work + '/made'
        rows = {'a subject that was not made': (('--subject', 'nosuch'), self.attestation, None),
                'a place that has gone': ((), made + '/attestation', f'rmdir {made}; '),
                'a place that is a directory by now': ((), made + '/attestation', f'mkdir {made}/attestation; ')}
        for name, (words, place, script) in rows.items():
            for status in (0, 3):
                with self.subTest(name, status=status):
                    shutil.rmtree(made, ignore_errors=True)
                    os.mkdir(made)
                    done = subprocess.run([IMAFS, 'run', '--attest', place, *words, '--', 'sh', '-c', (script or '') + f'exit {status}'], cwd=self.work,
                                          stderr=subprocess.PIPE, text=True)
                    self.assertEqual(status or 2, done.returncode, done.stderr)
                    kept = place
                    if script:
                        self.assertIn("the attestation is in '", done.stderr)
                        kept = done.stderr.split("the attestation is in '")[1].split("'")[0]
                        self.addCleanup(os.unlink, kept)
                    with open(kept) as file:
                        self.assertEqual(status, json.load(file)['predicate']['monitorLog']['process'][0]['exitCode'])
                    self.assertRegex(done.stderr, '^imafs: ')

    def test_signals_and_statuses_are_the_commands_own(self):
        self.run_it('sh', '-c', 'kill -TERM $$', check=143)  # process 1 of a namespace would not be ended by that
        self.run_it('sh', '-c', 'trap "exit 9" TERM; kill -TERM $$; exit 1', check=9)
        self.run_it('sh', '-c', 'exit 255', check=255)
        self.assertNotEqual(b'1\n', self.run_it('sh', '-c', 'echo $$').stdout)
        # Who is orphaned is waited for, and leaves nothing behind.
        self.assertEqual(b'', self.run_it('sh', '-c', 'for i in 1 2 3 4 5; do (sh -c "exit 0" &) ; done; sleep 0.2; grep -l "State:.Z" /proc/[0-9]*/status; true').stdout)
        done = subprocess.run(['nohup', IMAFS, 'run', '--', 'sh', '-c', 'kill -HUP $$; echo lives'], cwd=self.work, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.assertEqual((0, b'lives\n'), (done.returncode, done.stdout))

    def test_without_privileges_it_says_why_not(self):
        os.chmod(self.work, 0o755)
        done = subprocess.run(['setpriv', '--reuid', '65534', '--regid', '65534', '--clear-groups', IMAFS, 'run', '--', 'true'], cwd='/', stderr=subprocess.PIPE, text=True)
        self.assertNotEqual(0, done.returncode)
        self.assertRegex(done.stderr, r'^imafs: .*\n$')


class Killed(unittest.TestCase):
    """Any process of a run may be killed at any moment."""

    ROLES = ('caller', 'stage', 'init', 'command', 'daemon', 'swtpm', 'any')

    def setUp(self):
        self.work = tempfile.mkdtemp(prefix='imafs-run-', dir='/var/tmp')
        self.addCleanup(shutil.rmtree, self.work)
        os.mkdir(self.work + '/tree')
        for i in range(FILES):
            with open(f'{self.work}/tree/f{i}', 'w') as file:
                file.write(str(i))

    def processes(self, mark):
        """pid -> (parent, command line) of those that have the mark in their environment, or name the directory of such a one's mount."""
        found = {}
        for pid in filter(str.isdigit, os.listdir('/proc')):
            try:
                with open(f'/proc/{pid}/environ', 'rb') as environment, open(f'/proc/{pid}/stat') as stat, open(f'/proc/{pid}/cmdline', 'rb') as command:
                    words = command.read()
                    is_marked = mark in environment.read()
                    if is_marked:
                        self.names.update(re.findall(rb'/var/lib/imafs/run/[0-9a-f]{8}/', words))
                    if is_marked or any(name in words for name in self.names):
                        fields = stat.read().rsplit(') ', 1)[1].split()
                        if fields[0] != 'Z':
                            found[int(pid)] = (int(fields[1]), words.split(b'\0'))
            except OSError:
                pass
        return found

    def role_of(self, pid, parent, words, caller, stage):
        if pid == caller:
            return 'caller'
        if parent == caller:
            return 'stage'
        if b'swtpm' in os.path.basename(words[0]):
            return 'swtpm'
        if b'--backing' in words:
            return 'daemon'  # or who starts it
        return 'init' if parent == stage else 'command'

    def victim(self, mark, caller, role):
        found = self.processes(mark)
        stage = next((pid for pid, (parent, _) in found.items() if parent == caller), 0)
        fitting = [pid for pid, (parent, words) in found.items() if role in ('any', self.role_of(pid, parent, words, caller, stage))]
        return random.choice(fitting) if fitting else None

    def test_nothing_is_lost_and_nothing_stays(self):
        seed = random.randrange(1 << 32)
        random.seed(seed)
        missed = 0
        for kill in range(KILLS):
            self.names = set()
            role = self.ROLES[kill % len(self.ROLES)]
            mark = b'IMAFS_TEST_RUN=' + uuid.uuid4().hex.encode()
            environment = dict(os.environ, **dict([mark.decode().split('=')]))
            run = subprocess.Popen([IMAFS, 'run', '--attest', self.work + '/attestation', '--', 'sh', '-c', 'cat tree/* | wc -c; sleep 0.2; find / -xdev -maxdepth 2'], cwd=self.work,
                                   env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                time.sleep(random.uniform(0, 0.5))
                end = time.monotonic() + 2
                while (victim := self.victim(mark, run.pid, role)) is None and run.poll() is None and time.monotonic() < end:
                    pass
                if victim is None:
                    missed += 1
                else:
                    try:
                        os.kill(victim, signal.SIGKILL)
                    except ProcessLookupError:
                        missed += 1
                run.wait(60)
                end = time.monotonic() + 20
                while (left := self.processes(mark)) and time.monotonic() < end:
                    time.sleep(0.02)
            finally:
                run.kill()
                run.wait()
            about = f'seed {seed}, kill {kill} of {role}'
            self.assertEqual({}, left, about)
            self.assertEqual(FILES, len(os.listdir(self.work + '/tree')), about)
            with open('/proc/mounts') as mounts:
                self.assertNotIn('/var/lib/imafs/run', mounts.read(), about)
        for i in range(FILES):
            with open(f'{self.work}/tree/f{i}') as file:
                self.assertEqual(str(i), file.read())
        print(f'{KILLS - missed} of {KILLS} kills hit', flush=True)
        self.assertLess(missed, KILLS / 2)


if __name__ == '__main__':
    need_mounts()
    unittest.main(verbosity=2)
