#!/usr/bin/env python3
"""What a measured file must not do unseen: change without moving its times. Each way to write that we know, through the mount and
outside it, on each file system, after the lease is gone; then each file is read again, and its bytes must be in the log. Who only
opens for writing changes nothing, and nothing is logged."""
import ctypes
import fcntl
import hashlib
import mmap
import os
import struct
import time
import unittest

from file_systems import KINDS, NotHere, file_system
from mounting import Mount, run_tests, skip_part

SIZE = 65536


class Impossible(Exception):
    """This file system has no such call."""


def keeping_times(write):
    def keep(path, data, other):
        before = os.stat(path)
        write(path, data, other)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return keep


def store_into_a_mapping(path, data, _):
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, SIZE) as view:
        sum(view[::4096])  # the pages are there, writable: no fault tells of the stores
        view[:] = data
    os.close(fd)


def store_after_the_close(path, data, _):
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, SIZE) as view:
        sum(view[::4096])
        os.close(fd)
        time.sleep(0.01)
        view[:] = data


@keeping_times
def rewrite(path, data, _):
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, data, 0)
    os.close(fd)


@keeping_times
def truncate_and_append(path, data, _):
    os.truncate(path, 0)
    with open(path, 'ab') as file:
        file.write(data)


@keeping_times
def write_by_a_link(path, data, other):
    os.link(path, other + '.link')
    rewrite(other + '.link', data, other)
    os.unlink(other + '.link')


def exchange(request, arguments):
    def call(path, data, other):
        with open(other, 'wb') as file:
            file.write(data)
            os.fsync(file.fileno())
        theirs, ours = os.open(other, os.O_RDWR), os.open(path, os.O_RDWR)
        try:
            fcntl.ioctl(theirs, request, bytearray(arguments(ours)))
            os.fsync(ours)
            os.posix_fadvise(ours, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise Impossible(error.strerror) from error
        finally:
            os.close(theirs)
            os.close(ours)
    return call


EXT4_IOC_MOVE_EXT = exchange(0xC028660F, lambda fd: struct.pack('<IIQQQQ', 0, fd, 0, 0, SIZE // 4096, 0))
XFS_IOC_EXCHANGE_RANGE = exchange(0x40285881, lambda fd: struct.pack('<iIQQQQ', fd, 0, 0, 0, SIZE, 0))


@keeping_times
def clone(path, data, other):
    with open(other, 'wb') as file:
        file.write(data)
    with open(other, 'rb') as source, open(path, 'r+b') as target:
        try:
            fcntl.ioctl(target, 0x40049409, source.fileno())  # FICLONE
        except OSError as error:
            raise Impossible(error.strerror) from error


@keeping_times
def collapse(path, data, _):
    fd = os.open(path, os.O_RDWR)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        for mode in (0x08, 0x20):  # FALLOC_FL_COLLAPSE_RANGE, then FALLOC_FL_INSERT_RANGE: the size is as before
            if libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(4096)) != 0:
                raise Impossible(os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)


def only_open(path, *_):
    os.close(os.open(path, os.O_RDWR))


WAYS = {'mapping': store_into_a_mapping, 'mapping-outlives': store_after_the_close, 'rewrite': rewrite, 'truncate': truncate_and_append,
        'link': write_by_a_link, 'ext4-move': EXT4_IOC_MOVE_EXT, 'xfs-exchange': XFS_IOC_EXCHANGE_RANGE, 'clone': clone, 'collapse': collapse}


def content(name, when):
    return (hashlib.sha256(f'{name} {when} {time.time_ns()}'.encode()).digest() * (SIZE // 32))[:SIZE]


def read(path):
    with open(path, 'rb') as file:
        return hashlib.sha256(file.read()).hexdigest()


class Unchanged(unittest.TestCase):
    def changes(self, kind, *options):
        with file_system(kind) as work, Mount(*options, work=work) as mount:
            sides = {'mount': mount.path, 'outside': mount.backing}
            if kind == 'overlay':
                sides['layer'] = work + '/layers/upper'
            names = [f'{side}.{way}' for side in sides for way in WAYS] + ['still.mount', 'still.outside']
            for name in names:
                with open(f'{mount.backing}/{name}', 'wb') as file:
                    file.write(content(name, 'first'))
            os.sync()
            time.sleep(0.05)
            holders = [os.open(f'{mount.path}/{name}', os.O_PATH) for name in names]  # the kernel keeps the inodes
            for name in names:
                read(f'{mount.path}/{name}')
            time.sleep(1.6)  # longer than a lease is kept
            done, impossible = [], []
            for name in names:
                side, way = name.split('.')
                try:
                    if side == 'still':
                        only_open(f'{sides[way]}/{name}')
                    else:
                        WAYS[way](f'{sides[side]}/{name}', content(name, 'second'), f'{sides[side]}/{name}.other')
                        done.append(name)
                except Impossible:
                    impossible.append(name)
            silent = []
            for name in done:
                digest = read(f'{mount.path}/{name}')
                if not any(line[0].decode().endswith(digest) for line in mount.log()):
                    silent.append(name)
            for name in ('still.mount', 'still.outside'):
                read(f'{mount.path}/{name}')
            again = [name for name in mount.names() if name.startswith('/still')]
            violations = int(mount.control('violations'))
            for fd in holders:
                os.close(fd)
            self.assertEqual(0, mount.verify().returncode)
            print(f'{kind} {" ".join(options)}: {len(done)} ways to write, {len(impossible)} that it has not', flush=True)
            self.assertEqual([], silent)
            self.assertEqual(['/still.mount', '/still.outside'], again)
            self.assertEqual(0, violations)
            self.assertGreaterEqual(len(done), 5 * len(sides))
            return mount

    def each(self, *options):
        for kind in KINDS:
            with self.subTest(file_system=kind):
                try:
                    self.changes(kind, *options)
                except NotHere as why:
                    skip_part(kind, why)

    def test_no_change_is_unseen_whatever_the_times_say(self):
        self.each()

    def test_nor_where_nobody_reports_writers(self):
        for kind, options in (('tmpfs', ['--no-watch']), ('ext4', ['--no-watch']), ('tmpfs', ['--no-leases']), ('tmpfs', ['--no-passthrough'])):
            with self.subTest(options=options, file_system=kind):
                self.changes(kind, *options)

    def test_status_says_where_each_open_hashes(self):
        for kind, options, what in (('ext4', [], None), ('tmpfs', [], None), ('overlay', [], 'layers'), ('tmpfs', ['--no-watch'], 'writers-unreported'),
                                    ('tmpfs', ['--no-leases'], 'no-leases')):
            with self.subTest(file_system=kind, options=options), file_system(kind) as work, Mount(*options, work=work) as mount:
                with open(mount.backing + '/file', 'wb') as file:
                    file.write(content('file', 'first'))
                for _ in range(3):
                    read(mount.path + '/file')
                degraded = {one['what'] for one in mount.status()['degraded']}
                hashed = mount.status()['counters']['imafs_hashed_bytes_total'] // SIZE
                self.assertEqual(hashed, 3 if what in ('layers', 'no-leases') else 1)
                self.assertEqual({what} if what else set(), degraded & {'layers', 'writers-unreported', 'no-leases'})


if __name__ == '__main__':
    run_tests()
