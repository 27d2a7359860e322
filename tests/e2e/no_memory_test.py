#!/usr/bin/env python3
"""An allocation of the daemon fails, each of the first ones of an operation in turn: the operation ends, with an error or without; the
daemon goes on, or is dead and not half dead; and the log replays to the PCR. A command ends with a sentence and an exit status of its own."""
import os
import struct
import subprocess
import tempfile
import unittest

from mounting import IMAFS, Mount, need_mounts, skip_all

HERE = os.path.dirname(os.path.abspath(__file__))
SANITIZED = b'__asan_init' in open(IMAFS, 'rb').read() or b'__tsan_init' in open(IMAFS, 'rb').read()

# Each on names that the daemon does not know yet; $1 is the mount, $2 a number.
OPERATIONS = {
    'look': 'stat $1/small$2 $1/none$2',
    'read a small file': 'cat $1/small$2',
    'read a large file': 'cat $1/large$2',
    'make a file': 'echo x >$1/new$2',
    'make a directory': 'mkdir $1/dir$2; mv $1/dir$2 $1/moved$2; rmdir $1/moved$2',
    'list': 'ls -l $1',
    'ask for the status': 'cat $1/.ima/status $1/.ima/measurements',
    'write a policy': "echo 'measure func=FILE_CHECK uid='$2 >$1/.ima/policy",
}
SWEEP = range(1, int(os.environ.get('SWEEP', '11')))
# Commands on a mount, $1, its state directory, $2, and a copy of its log, $3. Allocations: spread over those that a command makes; the first
# ones are those of the libraries, before main.
COMMANDS = {
    'log': '"$IMAFS" log "$1"',
    'verify': '"$IMAFS" verify "$3"',
    'verify a mount': '"$IMAFS" verify "$1"',
    'verify a state directory': '"$IMAFS" verify --state "$2"',
    'policy': '"$IMAFS" policy show "$1"',
    'manifest': '"$IMAFS" manifest "$1" -o "$4"',
    'no command': '"$IMAFS" "$1/none" --backing "$1/none" --state state --tpm swtpm',
}
ALLOCATIONS = (12, 20, 30, 70, 150, 300, 450, 600, 900, 1500)


def make_library(directory):
    """The library that lets allocations fail, and the file that says which."""
    library, control = directory + '/no_memory.so', directory + '/countdown'
    subprocess.run(['c++', '-shared', '-fPIC', '-o', library, HERE + '/no_memory.cpp'], check=True)
    return library, control


def fail_at(control, number):
    with open(control, 'wb' if not os.path.exists(control) else 'r+b') as file:
        file.write(struct.pack('<q', number))


class NoMemory(unittest.TestCase):
    def test_a_command_ends_with_a_sentence(self):
        failed = 0
        with tempfile.TemporaryDirectory() as directory, Mount('--tpm', 'swtpm') as mount:
            library, control = make_library(directory)
            with open(mount.backing + '/file', 'w') as file:
                file.write('text')
            with open(mount.path + '/file') as file:
                file.read()
            with open(directory + '/log', 'wb') as copy, open(mount.path + '/.ima/binary_runtime_measurements', 'rb') as log:
                copy.write(log.read())
            for name, script in COMMANDS.items():
                for number in ALLOCATIONS:
                    with self.subTest(command=name, allocation=number):
                        fail_at(control, number)
                        done = subprocess.run(['sh', '-c', 'LD_PRELOAD="$LIBRARY" exec ' + script, 'sh', mount.path, mount.state, directory + '/log', directory + '/manifest'],
                                              env={**os.environ, 'IMAFS': IMAFS, 'LIBRARY': library, 'NO_MEMORY': control}, cwd=directory,
                                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=30)
                        self.assertIn(done.returncode, range(14))
                        self.assertNotIn('terminate', done.stderr)
                        if 'out of memory' in done.stderr:
                            failed += 1
                            self.assertEqual(2 if name.startswith('verify') else 13, done.returncode, done.stderr)
                            self.assertEqual(1, done.stderr.count('out of memory'), done.stderr)
        self.assertGreater(failed, len(COMMANDS) * 3)

    def test_a_directory_that_is_gone(self):
        with tempfile.TemporaryDirectory() as directory:
            gone, mountpoint = directory + '/gone', directory + '/mount'
            os.mkdir(mountpoint)
            for words in (['verify', '--state', 'state'], ['log', 'x'], ['verify', 'x'], ['policy', 'check', 'x'],
                          ['manifest', '.', '-o', 'x'], ['run', '--', 'true'], ['report', 'x', '-o', 'y'], ['quote', 'x', '--out', 'y'],
                          [mountpoint, '--backing', '.', '--state', 'state', '--tpm', 'swtpm'],
                          [mountpoint, '--backing', directory, '--state', 'state', '--tpm', 'swtpm']):
                with self.subTest(words=words):
                    os.makedirs(gone, exist_ok=True)
                    done = subprocess.run(['sh', '-c', 'cd "$1"; rmdir "$1"; shift; exec "$@"', 'sh', gone, IMAFS, *words], stdout=subprocess.DEVNULL,
                                          stderr=subprocess.PIPE, text=True, timeout=30)
                    self.assertIn(done.returncode, range(1, 14), done.stderr)
                    self.assertIn('imafs: ', done.stderr)

    def test_no_allocation_leaves_anything_half_done(self):
        deaths, tried = [], 0
        with tempfile.TemporaryDirectory() as directory:
            library, control = make_library(directory)
            fail_at(control, 0)
            mount = Mount('--tpm', 'swtpm', prefix=['env', 'LD_PRELOAD=' + library, 'NO_MEMORY=' + control])
            for number in SWEEP:
                for kind, size in (('small', 10), ('large', 200000)):
                    with open(f'{mount.backing}/{kind}{number}', 'wb') as file:
                        file.write(struct.pack('<q', number) * size)
            with mount:
                for number in SWEEP:
                    for name, script in OPERATIONS.items():
                        with self.subTest(operation=name, allocation=number):
                            tried += 1
                            fail_at(control, number)
                            # A request without an answer, a file that stays busy: the second try hangs.
                            for _ in range(2):
                                subprocess.run(['sh', '-c', script, 'sh', mount.path, str(number)], stdout=subprocess.DEVNULL,
                                               stderr=subprocess.DEVNULL, timeout=20)
                            fail_at(control, 0)
                            asked = subprocess.run(['stat', f'{mount.path}/absent{tried}'], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=20)
                            if b'No such file' not in asked.stderr:
                                deaths.append((name, number))
                                mount.wait_for_end()
                                subprocess.run(['umount', mount.path], check=True)
                                mount.start()
                for number in SWEEP:
                    for kind in ('small', 'large'):
                        with open(f'{mount.path}/{kind}{number}', 'rb') as file, open(f'{mount.backing}/{kind}{number}', 'rb') as plain:
                            self.assertEqual(plain.read(), file.read())
                self.assertEqual(0, mount.verify().returncode)
                self.assertLessEqual({f'/small{number}' for number in SWEEP}, set(mount.names()))
        print(f'{tried} operations, the daemon died in {len(deaths)}: {deaths[:10]}')
        self.assertLess(len(deaths), tried // 3)  # some may not be survived (docs/ARCHITECTURE.md)


if __name__ == '__main__':
    need_mounts()
    if SANITIZED:
        skip_all('a sanitizer has its own allocator')
    unittest.main()
