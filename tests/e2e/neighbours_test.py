#!/usr/bin/env python3
"""Violations are for readers and writers, not for descriptors that imafs keeps: two mounts of one tree, as two containers have them,
and a state directory that lies below the backing tree."""
import glob
import mmap
import os
import shutil
import tempfile
import time
import unittest

from mounting import Mount, run_tests, seen_within


def read(path):
    with open(path, 'rb') as file:
        return file.read()


def write(path):
    with open(path, 'r+b') as file:
        file.write(b'written')


def hold_open(path):
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 10)
    return lambda: os.close(fd)


def hold_mapped(path):
    with open(path, 'rb') as file:
        view = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ)
    assert len(view[:10]) == 10
    return view.close


class Neighbours(unittest.TestCase):
    def setUp(self):
        self.work = tempfile.mkdtemp(prefix='imafs-e2e-')
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.tree = self.work + '/tree'
        os.mkdir(self.tree)

    def mount(self, name, *options):
        os.mkdir(f'{self.work}/{name}')
        mount = Mount('--tpm', 'none', *options, backing=self.tree, work=f'{self.work}/{name}')
        self.addCleanup(mount.__exit__)
        mount.start()
        return mount

    def make(self, name, program=False):
        content = read('/bin/true') if program else os.urandom(8192)
        with open(f'{self.tree}/{name}', 'wb') as file:
            file.write(content)

    def test_two_mounts_of_one_tree(self):
        first, second = self.mount('first'), self.mount('second')
        time.sleep(0.5)  # each knows of the other
        places = {'first': first.path, 'second': second.path, 'outside': self.tree}
        counts = lambda: (int(first.control('violations')), int(second.control('violations')))
        for writer, pause, program in [(writer, pause, program) for writer in places for pause in (0.02, 1.5) for program in (False, True)]:
            with self.subTest('nobody has it open', writer=writer, pause=pause, program=program):
                name = f'{writer}.{pause}.{program}'
                self.make(name, program)
                before = counts()
                for place in (first.path, second.path, first.path):
                    read(f'{place}/{name}')
                    time.sleep(0.05)  # two that close it at once may each take the other's descriptor for a reader
                time.sleep(pause)
                write(f'{places[writer]}/{name}')
                time.sleep(0.1)
                self.assertEqual(before, counts())
                written = read(f'{self.tree}/{name}')
                self.assertEqual([written] * 2, [read(f'{place}/{name}') for place in (first.path, second.path)])
                self.assertEqual([2, 2], [mount.names().count('/' + name) for mount in (first, second)])
        for holder, how, writer in [(holder, how, writer) for holder in ('first', 'second') for how in (hold_open, hold_mapped) for writer in places]:
            with self.subTest('somebody has it open', holder=holder, how=how.__name__, writer=writer):
                name = f'{holder}.{how.__name__}.{writer}'
                self.make(name)
                before = counts()
                let_go = how(f'{places[holder]}/{name}')
                time.sleep(0.3)
                write(f'{places[writer]}/{name}')
                number = 0 if holder == 'first' else 1
                self.assertEqual(before[number] + 1, seen_within(lambda: counts()[number], before[number] + 1, 2))
                let_go()

    def test_what_imafs_writes_for_itself_below_the_tree(self):
        for options in ([], ['--no-passthrough']):
            with self.subTest(options=options):
                work = tempfile.mkdtemp(prefix='own-', dir=self.work)
                mount = Mount('--tpm', 'none', *options, backing=self.tree, work=work)
                mount.state = self.tree + '/state' + str(len(options))
                mount.messages = f'{self.tree}/messages{len(options)}'
                with mount:
                    self.make('file')
                    shown = mount.path + mount.state[len(self.tree):]
                    opened = 0
                    for _ in range(4):
                        read(mount.path + '/file')
                        names = [name for name in glob.glob(shown + '/**', recursive=True) if os.path.isfile(name)]
                        for name in names + [mount.path + mount.messages[len(self.tree):]]:
                            read(name)
                            opened += 1
                    self.assertGreater(opened, 8)
                    self.assertEqual(b'0\n', mount.control('violations'))
                    # Somebody else's writer there is one, as everywhere.
                    with open(self.tree + '/other', 'wb') as writer:
                        writer.write(b'x')
                        writer.flush()
                        read(mount.path + '/other')
                    self.assertEqual(b'1\n', mount.control('violations'))


if __name__ == '__main__':
    run_tests()
