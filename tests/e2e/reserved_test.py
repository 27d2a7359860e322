#!/usr/bin/env python3
"""Room that a file system keeps for root, and quotas: a user of the mount gets no more of either than below it."""
import contextlib
import os
import subprocess
import sys
import unittest

from mounting import Mount, need_mounts, seen_within

USER = 65534
MIB = 1 << 20

# What many small things are tried on: a file that has taken all that there is for the user.
FULL = '''
try:
  fd = os.open(path, os.O_WRONLY | os.O_APPEND)
  while os.write(fd, b'x' * 65536): pass
except OSError: pass'''

# Ways for a user to take blocks, each for a file that he may write: argv is the file and the directory. All go on until ENOSPC or EDQUOT.
FILLERS = {
    'append': '''
fd = os.open(path, os.O_WRONLY | os.O_APPEND)
while os.write(fd, b'x' * 65536): pass''',
    'write at an offset': '''
fd = os.open(path, os.O_RDWR)
at = 0
while at < 64 << 20: at += os.pwrite(fd, b'x' * 65536, at)''',
    'fallocate': '''
fd = os.open(path, os.O_WRONLY)
for at in range(0, 64 << 20, 1 << 16): os.posix_fallocate(fd, at, 1 << 16)''',
    'copy_file_range': '''
fd, source = os.open(path, os.O_RDWR), os.open(directory + '/source', os.O_RDONLY)
at = 0
while at < 64 << 20: at += os.copy_file_range(source, fd, 1 << 16, 0, at)''',
    'many files': FULL + '''
for number in range(20000):
  with open(f'{directory}/small{number}', 'w') as file: file.write('x' * 9000)''',
    'directories': FULL + '''
for number in range(20000): os.mkdir(f'{directory}/d{number}')''',
    'direct writes': '''
import mmap
fd, block, at = os.open(path, os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, 1 << 16), 0
while at < 64 << 20: at += os.pwrite(fd, block, at)''',
}
PROGRAM = '''
import errno, os, sys
path, directory = sys.argv[1:]
try:%s
except OSError as error:
  sys.exit(0 if error.errno in (errno.ENOSPC, errno.EDQUOT) else f'{error}')
sys.exit('never full')
'''


def fill(how, directory):
    body = '\n'.join('  ' + line for line in FILLERS[how].split('\n'))
    return subprocess.run(['setpriv', f'--reuid={USER}', f'--regid={USER}', '--clear-groups', sys.executable, '-c', PROGRAM % body,
                           directory + '/u/file', directory + '/u'], stderr=subprocess.PIPE, text=True, timeout=120)


@contextlib.contextmanager
def image(work, make, options='loop'):
    """A small ext4 at work/tree; no value if it cannot be made or mounted so."""
    path, tree = work + '/image', work + '/tree'
    os.chmod(work, 0o755)
    os.makedirs(tree, exist_ok=True)
    with open(path, 'wb') as file:
        file.truncate(24 * MIB)
    made = subprocess.run(['mkfs.ext4', '-q', '-F', *make, path], stderr=subprocess.PIPE, text=True)
    mounted = made.returncode == 0 and subprocess.run(['mount', '-o', options, path, tree], stderr=subprocess.PIPE).returncode == 0
    try:
        yield tree if mounted else None
    finally:
        if mounted:
            subprocess.run(['umount', tree])
        os.unlink(path)


def prepare(tree):
    """A file of the user's, made by root and given to him, as adduser, tar and a mail server do."""
    os.makedirs(tree + '/u', exist_ok=True)
    for name in ('file', 'source'):
        with open(f'{tree}/u/{name}', 'wb') as file:
            file.write(b's' * 65536)
        os.chown(f'{tree}/u/{name}', USER, USER)
    os.chown(tree + '/u', USER, USER)
    os.sync()


def empty(tree):
    subprocess.run(['rm', '-rf', tree + '/u'], check=True)
    os.sync()


class Reserved(unittest.TestCase):
    def try_all(self, mount, tree, check):
        """Each way in turn, through the mount of `tree`; `check` looks at what it left."""
        mount.start()
        try:
            os.sync()
            room = os.statvfs(tree).f_bfree
            for how in FILLERS:
                with self.subTest(how=how, options=mount.options):
                    prepare(mount.path)
                    # Registered for root's own use, and idle: the user's open takes the same backing file.
                    with open(mount.path + '/u/file', 'rb') as file:
                        file.read()
                    done = fill(how, mount.path)
                    os.sync()
                    check(how)
                    self.assertEqual('', done.stderr)
                empty(tree)
                seen_within(lambda: os.statvfs(tree).f_bfree > room - 256, True, 10)  # once the daemon has closed it, too
        finally:
            mount.stop()

    def test_blocks_that_are_kept_for_root_stay_so(self):
        for options in ([], ['--no-passthrough']):
            mount = Mount('--tpm', 'none', *options)
            try:
                with image(mount.work, ['-m', '20']) as tree:
                    if not tree:
                        self.skipTest('no ext4 image can be mounted')
                    about = os.statvfs(tree)
                    reserve = (about.f_bfree - about.f_bavail) * about.f_frsize
                    self.assertGreater(reserve, 3 * MIB)

                    def check(how):
                        now = os.statvfs(tree)
                        left = now.f_bfree * now.f_frsize
                        self.assertGreaterEqual(left, reserve - MIB // 2, f'{how}: {(reserve - left) >> 10} KiB of the reserve are gone')
                    self.try_all(mount, tree, check)
            finally:
                mount.__exit__()

    def test_a_quota_holds(self):
        mount = Mount('--tpm', 'none')
        try:
            with image(mount.work, ['-O', 'quota', '-E', 'quotatype=usrquota'], 'loop,usrquota') as tree:
                if not tree:
                    self.skipTest('this kernel has no quota for ext4')
                if subprocess.run(['setquota', '-u', str(USER), '0', '8192', '0', '0', tree]).returncode != 0:
                    self.skipTest('setquota(8) is missing')

                def check(how):
                    taken = int(subprocess.run(['du', '-sk', tree + '/u'], stdout=subprocess.PIPE, text=True).stdout.split()[0])
                    self.assertLessEqual(taken, 8192)
                self.try_all(mount, tree, check)
        finally:
            mount.__exit__()


if __name__ == '__main__':
    need_mounts()
    unittest.main()
