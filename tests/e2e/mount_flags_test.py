#!/usr/bin/env python3
"""What the flags of a mount in the backing tree forbid is forbidden above it: for a part of the tree, for all of it, and
when a mount gets other flags later. The judge is the same call on the backing tree."""
import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
import unittest

from mounting import Mount, run_tests, seen_within
from twins import attempt

USER = 1234
CAPABILITY = bytes.fromhex('0100000200040000000000000000000000000000')  # of version 2: cap_net_bind_service=ep... in the file


def run_as_user(path):
    """The effective uid a program has when the user starts it, or that it does not start."""
    done = subprocess.run(['setpriv', '--reuid', str(USER), '--regid', str(USER), '--clear-groups', path, '-u'], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True)
    return int(done.stdout) if done.returncode == 0 else 'does not run'


def moves_atime(path):
    os.utime(path, (1, os.lstat(path).st_mtime))
    if os.path.isdir(path):
        os.listdir(path)
    else:
        with open(path, 'rb') as file:
            file.read()
    return os.lstat(path).st_atime > 1


def opens_device(path):
    """Which of its numbers a caller reaches; that it is refused is what counts, not by which error."""
    try:
        fd = os.open(path, os.O_WRONLY)
    except OSError:
        return 'refused'
    os.close(fd)
    return 'opened'


def behaviour(directory):
    return {
        'setuid': run_as_user(directory + '/setuid'),
        'exec': run_as_user(directory + '/plain'),
        'device': opens_device(directory + '/null'),
        'link': attempt(lambda: os.stat(directory + '/link').st_size),
        'write': attempt(lambda: os.close(os.open(directory + '/file', os.O_RDWR))),
        'chmod': attempt(lambda: os.chmod(directory + '/file', 0o640)),
        'create': attempt(lambda: os.close(os.open(directory + '/new', os.O_CREAT | os.O_WRONLY))),
        'atime': moves_atime(directory + '/file') if attempt(lambda: os.utime(directory + '/file')) is None else 'fixed',
    }


@contextlib.contextmanager
def part(directory, flags):
    """A file system of its own with things in it that flags forbid."""
    os.makedirs(directory, exist_ok=True)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'mode=755', 'none', directory], check=True)
    try:
        for name, mode in (('setuid', 0o4755), ('plain', 0o755)):
            shutil.copy(shutil.which('id'), f'{directory}/{name}')
            os.chmod(f'{directory}/{name}', mode)
        os.mknod(directory + '/null', stat.S_IFCHR | 0o666, os.makedev(1, 3))
        with open(directory + '/file', 'w') as file:
            file.write('data')
        os.symlink('file', directory + '/link')
        remount(directory, flags)
        yield directory
    finally:
        subprocess.run(['umount', '-l', directory], stderr=subprocess.DEVNULL)


def remount(directory, flags):
    subprocess.run(['mount', '-o', 'remount,bind,' + flags, directory], check=True)


FLAGS = ('suid,dev,exec', 'nosuid', 'nodev', 'noexec', 'nosuid,nodev,noexec', 'noatime', 'ro', 'nosymfollow')


class MountFlags(unittest.TestCase):
    options = ('--tpm', 'none')

    def mounted(self, work, backing):
        return Mount(*self.options, backing=backing, work=work)

    def setUp(self):
        work = tempfile.TemporaryDirectory(prefix='imafs-e2e-')
        self.addCleanup(work.cleanup)
        self.work = work.name
        os.chmod(self.work, 0o755)

    def test_parts(self):
        with contextlib.ExitStack() as ends:
            tree = self.work + '/tree'
            for number, flags in enumerate(FLAGS):
                ends.enter_context(part(f'{tree}/{number}', flags))
            mount = ends.enter_context(self.mounted(self.work, tree))
            for number, flags in enumerate(FLAGS):
                with self.subTest(flags=flags):
                    self.assertEqual(behaviour(f'{mount.path}/{number}'), behaviour(f'{tree}/{number}'))

    def test_the_root(self):
        for flags in FLAGS:
            with self.subTest(flags=flags), part(self.work + '/tree', flags) as tree, self.mounted(self.work, tree) as mount:
                self.assertEqual(behaviour(mount.path), behaviour(tree))

    def test_flags_that_change(self):
        with part(self.work + '/tree/part', 'suid,dev,exec') as directory, self.mounted(self.work, self.work + '/tree') as mount:
            self.assertEqual(behaviour(mount.path + '/part'), behaviour(directory))
            for flags in ('nosuid,nodev,noexec', 'noexec', 'ro,nosuid', 'rw,nodev,noatime,exec,suid', 'suid,dev,exec,atime,relatime'):
                remount(directory, flags)
                expected = behaviour(directory)
                self.assertEqual(seen_within(lambda: behaviour(mount.path + '/part'), expected, 10), expected, flags)

    def test_read_only_while_somebody_writes(self):
        with part(self.work + '/tree/part', 'rw') as directory, self.mounted(self.work, self.work + '/tree') as mount:
            with open(mount.path + '/part/file', 'r+'):
                remount(directory, 'ro,noexec')
                self.assertEqual(seen_within(lambda: run_as_user(mount.path + '/part/plain'), 'does not run', 10), 'does not run')
            expected = behaviour(directory)
            self.assertEqual(seen_within(lambda: behaviour(mount.path + '/part'), expected, 10), expected)

    def test_file_capabilities(self):
        with part(self.work + '/tree/part', 'suid') as directory, self.mounted(self.work, self.work + '/tree') as mount:
            if attempt(lambda: os.setxattr(directory + '/plain', 'security.capability', CAPABILITY)) is not None:
                self.skipTest('the file system keeps no file capabilities')
            path = mount.path + '/part/plain'
            self.assertEqual(os.getxattr(path, 'security.capability'), CAPABILITY)
            remount(directory, 'nosuid')
            self.assertEqual(seen_within(lambda: attempt(lambda: os.getxattr(path, 'security.capability')), 'ENODATA', 10), 'ENODATA')


class OneDirectoryAtTwoPlaces(unittest.TestCase):
    def test_what_changes_at_one_place_shows_at_the_other(self):
        with Mount('--tpm', 'none') as mount:
            first, second = (f'{mount.backing}/{name}' for name in ('first', 'second'))
            os.mkdir(first)
            os.mkdir(second)
            subprocess.run(['mount', '--bind', first, second], check=True)
            self.addCleanup(subprocess.run, ['umount', '-l', second], stderr=subprocess.DEVNULL)
            mount.stop()
            mount.start()
            above, twin = mount.path + '/first', mount.path + '/second'
            for name in ('gone', 'changed', 'moved'):
                with open(f'{above}/{name}', 'w') as file:
                    file.write('data')

            def look(directory):
                return [(name, attempt(lambda: oct(os.stat(f'{directory}/{name}').st_mode))) for name in ('new', 'gone', 'changed', 'moved', 'here')], \
                    sorted(os.listdir(directory))
            look(twin)
            os.mkdir(above + '/new')
            os.unlink(above + '/gone')
            os.chmod(above + '/changed', 0o600)
            os.rename(above + '/moved', above + '/here')
            self.assertEqual(seen_within(lambda: look(twin), look(first), 2), look(first))
            mount.stop()
            subprocess.run(['umount', '-l', second], check=True)


class MountFlagsWithoutPassthrough(MountFlags):
    options = ('--tpm', 'none', '--no-passthrough')


if __name__ == '__main__':
    run_tests()
