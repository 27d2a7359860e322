#!/usr/bin/env python3
"""What a measured file must not do unseen: change without moving its times. Each way to write that we know, through the mount and
outside it, on each file system, after the lease is gone; then each file is read again, and its bytes must be in the log. Who only
opens for writing changes nothing, and nothing is logged."""
import hashlib
import os
import time
import unittest

from file_systems import KINDS, NotHere, file_system
from mounting import Mount, run_tests, skip_part
from writers import (EXT4_IOC_MOVE_EXT, XFS_IOC_EXCHANGE_RANGE, Impossible, clone, collapse, rewrite, store_after_the_close,
                     mapped, put, store_into_a_mapping, truncate_and_append, write_by_a_link)

SIZE = 65536


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

    def test_pages_that_were_read_between_two_hashes_are_not_kept(self):
        """Served through the daemon, the kernel keeps pages; a store that moves no time made some of them old."""
        for kind, options in (('tmpfs', ['--no-passthrough']), ('overlay', [])):
            with self.subTest(file_system=kind, options=options), file_system(kind) as work, Mount(*options, work=work) as mount:
                first, second, third = (content('file', when) for when in ('first', 'second', 'third'))
                put(mount.backing + '/file', first)
                time.sleep(0.1)
                with open(mount.path + '/file', 'rb') as early:
                    fd, view = mapped(mount.backing + '/file')
                    view[:] = second
                    self.assertEqual(second, early.read())
                    view[:] = third
                    view.close()
                    os.close(fd)
                    self.assertEqual(hashlib.sha256(third).hexdigest(), read(mount.path + '/file'))

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
