#!/usr/bin/env python3
"""Rewrites that time stamps do not show: of the same size, with the mtime put back, within one grain of the file system's
clock. No state may be read without its entry. ROUNDS rewrites each (2,000). A clock that is set back is in measure_cache_test."""
import contextlib
import hashlib
import os
import subprocess
import time
import unittest

from mounting import FUSE_RELEASE, Mount, late, loop_devices_refused, run_tests

ROUNDS = int(os.environ.get('ROUNDS', '2000'))
THEN = (10 ** 18, 10 ** 18)  # atime and mtime that every state gets


def rewrite(path, data):
    """The size stays, nothing is truncated, and mtime says nothing."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(fd, data)
    os.close(fd)
    os.utime(path, ns=THEN)


def read(path):
    with open(path, 'rb') as file:
        return file.read()


class Clocks(unittest.TestCase):
    def judge(self, mount, rounds, where, pause=0.0, next_writer=None):
        """Every state was read as it is, and has an entry of its own, also if the next writer is there already, at its path."""
        states = set()
        for i in range(rounds):
            data = b'%s %s %07d' % (where.encode()[-1:], (next_writer or '-').encode()[-1:], i)
            rewrite(f'{where}/f', data)
            with open(f'{next_writer}/f', 'ab') if next_writer else contextlib.nullcontext():
                self.assertEqual(data, read(mount.path + '/f'))
            states.add(hashlib.sha256(data).hexdigest())
            time.sleep(pause)
        logged = {digest.split(b':')[1].decode() for digest, name in mount.log() if name == b'/f'}
        self.assertEqual(set(), states - logged)
        self.assertEqual(0, mount.verify().returncode)

    def test_beside_the_mount(self):
        with Mount() as mount:
            self.judge(mount, ROUNDS, mount.backing)

    def test_beside_the_mount_with_no_lease_to_tell(self):
        with Mount('--no-leases') as mount:
            self.judge(mount, ROUNDS, mount.backing)

    def test_through_the_mount(self):
        for options in ([], ['--no-passthrough'], ['--no-leases']):
            with self.subTest(options=options), Mount(*options) as mount:
                for next_writer in (None, mount.path, mount.backing):
                    self.judge(mount, ROUNDS // 8, mount.path, next_writer=next_writer)

    def test_through_a_mount_whose_releases_come_late(self):
        """Each open finds the last writer still there that is gone: it is waited for at 5 ms, and no longer at 100."""
        for options in ([], ['--no-passthrough'], ['--no-leases']):
            with self.subTest(options=options), late(FUSE_RELEASE, 100) as prefix, Mount(*options, prefix=prefix) as mount:
                for next_writer in (None, mount.path, mount.backing):
                    self.judge(mount, ROUNDS // 200, mount.path, next_writer=next_writer)
            with self.subTest(options=options), late(FUSE_RELEASE, 5) as prefix, Mount(*options, prefix=prefix) as mount:
                self.judge(mount, ROUNDS // 20, mount.path)
                self.assertEqual(b'0\n', mount.control('violations'))

    def test_a_file_system_whose_clock_counts_seconds(self):
        """ext4 with inodes of 128 bytes: many states have all their time stamps in common."""
        if loop_devices_refused():
            self.skipTest(loop_devices_refused())
        for options in ([], ['--no-leases'], ['--no-passthrough']):
            mount = Mount(*options)
            image = mount.work + '/image'
            with open(image, 'wb') as file:
                file.truncate(8 << 20)
            subprocess.run(['mkfs.ext4', '-q', '-I', '128', image], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            subprocess.run(['mount', '-o', 'loop', image, mount.backing], check=True)
            with self.subTest(options=options), mount:
                rewrite(mount.backing + '/probe', b'x')
                self.assertEqual(0, os.stat(mount.backing + '/probe').st_ctime_ns % 10 ** 9, 'not the clock that was wanted')
                for where in (mount.backing, mount.path):
                    self.judge(mount, 30, where, pause=0.06)  # so long that no finer clock would be in doubt


if __name__ == '__main__':
    run_tests()
