"""Backing trees on other file systems, for a test: each in a loop device or in memory, unmounted at the end."""
import contextlib
import os
import shutil
import subprocess
import tempfile

MAKE = {'ext4': ['mkfs.ext4', '-q'], 'xfs': ['mkfs.xfs', '-q'], 'btrfs': ['mkfs.btrfs', '-q']}
SIZE = {'ext4': 64 << 20, 'xfs': 320 << 20, 'btrfs': 160 << 20}
KINDS = ('ext4', 'xfs', 'btrfs', 'tmpfs', 'overlay')


class NotHere(Exception):
    """Why this kind cannot be had on this machine."""


def run(*words):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise NotHere(f'{words[0]}: {done.stdout.strip()[:200]}')


@contextlib.contextmanager
def file_system(kind):
    """A work directory for Mount whose `tree` is an empty file system of that kind. Overlay: on tmpfs, its upper directory is `layers/upper`."""
    work = tempfile.mkdtemp(prefix='imafs-e2e-')
    tree = work + '/tree'
    os.chmod(work, 0o755)
    os.mkdir(tree)
    mounted = []
    try:
        if kind == 'overlay':
            os.mkdir(work + '/layers')
            run('mount', '-t', 'tmpfs', 'none', work + '/layers')
            mounted.append(work + '/layers')
            for name in ('lower', 'upper', 'work'):
                os.mkdir(f'{work}/layers/{name}')
            run('mount', '-t', 'overlay', 'none', '-o', 'lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work'.format(work + '/layers'), tree)
        elif kind == 'tmpfs':
            run('mount', '-t', 'tmpfs', 'none', tree)
        else:
            if not shutil.which(MAKE[kind][0]):
                raise NotHere(f'no {MAKE[kind][0]}')
            with open(work + '/image', 'wb') as image:
                image.truncate(SIZE[kind])
            run(*MAKE[kind], work + '/image')
            run('mount', '-o', 'loop', work + '/image', tree)
        mounted.append(tree)
        yield work
    finally:
        for place in reversed(mounted):
            subprocess.run(['umount', '-l', place], stderr=subprocess.DEVNULL)  # Mount may have been quicker
        shutil.rmtree(work, ignore_errors=True)
