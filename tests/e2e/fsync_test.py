#!/usr/bin/env python3
"""fsync(2) after the disk failed: the same answers as on the plain tree, which are one error for each handle that was open. The disk is
a loop device on a tmpfs without room for the blocks that are written."""
import itertools
import os
import subprocess
import tempfile
import shutil
import unittest

from mounting import Mount, run_tests

SIZE = 1 << 20


def answer(call, fd):
    try:
        call(fd)
        return 'ok'
    except OSError as error:
        return os.strerror(error.errno)


def steps(path, call):
    """Who has it open learns of it, in turns, once; also who only reads, and who opens it after the write and before the error is told."""
    said = []
    first, second, reader = os.open(path, os.O_RDWR), os.open(path, os.O_WRONLY), os.open(path, os.O_RDONLY)
    said.append([answer(call, first), answer(call, second)])  # nothing is wrong yet
    os.pwrite(first, b'x' * SIZE, 0)
    said.append([answer(call, fd) for fd in (second, first, reader)])
    said.append([answer(call, fd) for fd in (second, first, reader)])
    late = os.open(path, os.O_RDWR)
    said.append(answer(call, late))
    os.pwrite(late, b'y' * SIZE, 0)
    said.append([answer(call, fd) for fd in (late, first, second, reader, late)])
    for fd in (first, second, reader, late):
        os.close(fd)
    return said


class Fsync(unittest.TestCase):
    def test_each_handle_is_told_once(self):
        for options, call in itertools.product(([], ['--no-passthrough']), (os.fsync, os.fdatasync)):
            with self.subTest(options=options, call=call.__name__):
                self.compare(options, call)

    def compare(self, options, call):
        work = tempfile.mkdtemp(prefix='imafs-e2e-')
        self.addCleanup(shutil.rmtree, work, ignore_errors=True)
        os.mkdir(work + '/small')
        os.mkdir(work + '/tree')
        subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=24M', 'none', work + '/small'], check=True)
        self.addCleanup(subprocess.run, ['umount', '-l', work + '/small'], stderr=subprocess.DEVNULL)
        with open(work + '/small/image', 'wb') as image:
            image.truncate(40 << 20)
        subprocess.run(['mkfs.ext4', '-q', '-O', '^has_journal', '-E', 'lazy_itable_init=0,nodiscard', work + '/small/image'], check=True)
        done = subprocess.run(['mount', '-o', 'loop,errors=continue', work + '/small/image', work + '/tree'], stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            self.skipTest('loop devices: ' + done.stderr.strip())
        self.addCleanup(subprocess.run, ['umount', '-l', work + '/tree'], stderr=subprocess.DEVNULL)
        for name in ('plain', 'mounted'):
            fd = os.open(f'{work}/tree/{name}', os.O_WRONLY | os.O_CREAT)
            os.posix_fallocate(fd, 0, SIZE)  # has blocks, and nothing was ever written to them
            os.close(fd)
        os.sync()
        with open(work + '/small/filler', 'wb', buffering=0) as filler:
            try:
                while filler.write(bytes(65536)):
                    pass
            except OSError:
                pass
        with Mount('--tpm', 'none', *options, work=work) as mount:
            plain = steps(work + '/tree/plain', call)
            if 'ok' in plain[1]:
                self.skipTest(f'no write error to be had here: {plain}')
            self.assertEqual(plain, steps(mount.path + '/mounted', call))


if __name__ == '__main__':
    run_tests()
