#!/usr/bin/env python3
"""Nobody gets more through the mount than below it: calls whose names and attributes the kernel knows from before somebody
changed them outside the mount. The mounts here keep them for an hour and are told of no change, so that each call meets the
moment which is a tenth of a second long elsewhere."""
import os
import select
import signal
import unittest

from mounting import Mount, run_tests
from twins import STRANGER, attempt

PATIENCE = 20.0  # seconds; none of these calls waits for anything

STALE = ('--tpm', 'none', '--no-watch', '--timeout', '3600')


def write(path, data=b'data', mode=0o644):
    with open(path, 'wb') as file:
        file.write(data)
    os.chmod(path, mode)


def as_caller(uid, gid, groups, work):
    """Runs `work` in a child with these ids; its result comes back as text. A child that waits for ever is left behind."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.write(writer, repr(attempt(work)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as result:
        if not select.select([result], [], [], PATIENCE)[0]:
            os.kill(child, signal.SIGKILL)
            return 'waits for ever'
        os.waitpid(child, 0)
        return result.read()


class Stale(unittest.TestCase):
    options = STALE

    @classmethod
    def setUpClass(cls):
        cls.mount = Mount(*cls.options)
        cls.mount.start()
        os.chmod(cls.mount.work, 0o755)

    @classmethod
    def tearDownClass(cls):
        cls.mount.__exit__()


class CreatingWhatIsThere(Stale):
    """open(O_CREAT) of a name that the kernel believes absent."""

    def made_outside(self, make, flags, uid=STRANGER):
        directory = f'{self.mount.backing}/{self.id()}'
        os.mkdir(directory)
        os.chmod(directory, 0o1777)
        results = []
        for number, root in enumerate((self.mount.path, self.mount.backing)):
            name = f'{self.id()}/name{number}'
            attempt(lambda: os.stat(f'{self.mount.path}/{name}'))
            make(f'{self.mount.backing}/{name}')

            def call():
                fd = os.open(f'{root}/{name}', flags, 0o600)
                try:
                    return os.fstat(fd).st_uid, attempt(lambda: os.read(fd, 100)), attempt(lambda: os.write(fd, b'written'))
                finally:
                    os.close(fd)
            results.append(as_caller(uid, uid, [], call))
        self.assertEqual(results[0], results[1])
        return results[0]

    def test_a_file_of_root(self):
        self.assertEqual(self.made_outside(lambda path: write(path, mode=0o600), os.O_RDWR | os.O_CREAT), repr('EACCES'))

    def test_a_file_of_root_that_anybody_may_read(self):
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
            with self.subTest(flags=flags):
                self.id = lambda flags=flags: f'readable{flags}'
                self.made_outside(lambda path: write(path, mode=0o644), flags | os.O_CREAT)

    def test_exclusively(self):
        self.assertEqual(self.made_outside(write, os.O_RDWR | os.O_CREAT | os.O_EXCL), repr('EEXIST'))

    def test_a_link_to_a_file_of_root(self):
        write(self.mount.backing + '/secret', mode=0o600)
        self.made_outside(lambda path: os.symlink('../secret', path), os.O_RDWR | os.O_CREAT)

    def test_a_directory(self):
        self.assertEqual(self.made_outside(os.mkdir, os.O_RDWR | os.O_CREAT), repr('EISDIR'))

    def test_a_fifo(self):
        self.made_outside(lambda path: os.mkfifo(path, 0o600), os.O_RDWR | os.O_CREAT | os.O_NONBLOCK)

    def test_root_is_served(self):
        self.assertEqual(self.made_outside(write, os.O_RDWR | os.O_CREAT, uid=0), repr((0, b'data', 7)))


class CreatingWhatIsThereWithoutPassthrough(CreatingWhatIsThere):
    options = (*STALE, '--no-passthrough')


if __name__ == '__main__':
    run_tests()
