#!/usr/bin/env python3
"""Random operations against models: one file against bytes in memory, as fsx does it, and a tree against a plain twin.
STEPS: how many (50,000 and 20,000; by hand STEPS=1000000). SEED repeats a run."""
import ctypes
import errno
import mmap
import os
import random
import stat
import subprocess
import time
import unittest

from mounting import Mount, run_tests

STEPS = int(os.environ.get('STEPS', '50000'))
SEED = int(os.environ.get('SEED', time.time_ns() % 1000000))
LIMIT = 192 * 1024
PAGE = 4096
KEEP_SIZE, PUNCH, COLLAPSE, ZERO, INSERT = 1, 2, 8, 16, 32

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def fallocate(fd, mode, offset, length):
    if libc.fallocate(fd, mode, offset, length) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class OneFile:
    """A file through the mount, and what it must hold."""

    def __init__(self, mount, rng):
        self.path, self.beside, self.rng = mount.path + '/file', mount.backing + '/file', rng
        self.model = bytearray()
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        self.done = []

    def place(self, limit):
        offset = self.rng.randrange(limit)
        return offset, self.rng.randrange(1, min(limit - offset, 20000) + 1)

    def fill(self, offset, data):
        if offset > len(self.model):
            self.model.extend(bytes(offset - len(self.model)))
        self.model[offset:offset + len(data)] = data

    def fresh(self, length):
        return self.rng.randbytes(length)

    # ---- operations; each returns what went wrong, or None

    def read(self):
        offset, length = self.place(LIMIT)
        if os.pread(self.fd, length, offset) != self.model[offset:offset + length]:
            return f'pread({offset}, {length})'

    def write(self):
        offset, length = self.place(LIMIT)
        data = self.fresh(length)
        os.pwrite(self.fd, data, offset)
        self.fill(offset, data)

    def append(self):
        if len(self.model) > LIMIT - 5000:
            return
        data = self.fresh(self.rng.randrange(1, 5000))
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, data)
        os.close(fd)
        self.model += data

    def truncate(self):
        size = self.rng.randrange(LIMIT)
        (os.ftruncate if self.rng.random() < 0.5 else lambda fd, length: os.truncate(self.path, length))(self.fd, size)
        self.model[size:] = bytes(max(0, size - len(self.model)))

    def mapped(self, writes):
        if not self.model:
            return
        offset, length = self.place(len(self.model))
        start = offset // PAGE * PAGE
        with mmap.mmap(self.fd, offset + length - start, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=start) as view:
            at = slice(offset - start, offset - start + length)
            if writes:
                data = self.fresh(length)
                view[at] = data
                self.model[offset:offset + length] = data
                if self.rng.random() < 0.3:
                    view.flush()
            elif view[at] != self.model[offset:offset + length]:
                return f'mapping of ({offset}, {length})'

    def read_mapped(self):
        return self.mapped(False)

    def write_mapped(self):
        return self.mapped(True)

    def allocate(self):
        mode = self.rng.choice((0, KEEP_SIZE, PUNCH | KEEP_SIZE, ZERO, ZERO | KEEP_SIZE))
        offset, length = self.place(LIMIT)
        fallocate(self.fd, mode, offset, length)
        if mode == 0 or mode == ZERO:
            self.model.extend(bytes(max(0, offset + length - len(self.model))))
        if mode & (PUNCH | ZERO):
            end = min(offset + length, len(self.model))
            if offset < end:
                self.model[offset:end] = bytes(end - offset)

    def collapse_or_insert(self):
        pages = len(self.model) // PAGE
        if pages < 3:
            return
        offset = self.rng.randrange(pages - 1) * PAGE
        length = self.rng.randrange(1, 3) * PAGE
        # Linux lets no FUSE file system do these (fuse_file_fallocate): a limit, and nothing may change.
        for mode in (COLLAPSE, INSERT):
            try:
                fallocate(self.fd, mode, offset, length)
                return 'a kernel that hands this through: teach the model'
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    return f'fallocate({mode}): {error}'

    def copy_range(self):
        if not self.model:
            return
        offset, length = self.place(len(self.model))
        target = self.rng.randrange(LIMIT - length) if length < LIMIT else 0
        if target < offset + length and offset < target + length:
            return
        copied = os.copy_file_range(self.fd, self.fd, length, offset, target)
        self.fill(target, bytes(self.model[offset:offset + copied]))

    def direct(self):
        fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        try:
            with mmap.mmap(-1, 4 * PAGE) as buffer:
                offset = self.rng.randrange(LIMIT // PAGE - 4) * PAGE
                if self.rng.random() < 0.5:
                    data = self.fresh(4 * PAGE)
                    buffer[:] = data
                    os.pwritev(fd, [buffer], offset)
                    self.fill(offset, data)
                else:
                    got = os.preadv(fd, [buffer], offset)
                    if buffer[:got] != self.model[offset:offset + 4 * PAGE]:
                        return f'O_DIRECT read at {offset}'
        finally:
            os.close(fd)

    def reopen(self):
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)

    def whole(self):
        size = os.stat(self.path).st_size
        if size != len(self.model) or os.fstat(self.fd).st_size != size:
            return f'size {size}, not {len(self.model)}'
        for path in (self.path, self.beside):
            with open(path, 'rb') as file:
                if file.read() != self.model:
                    return 'the whole of ' + path

    MOVES = ('read', 'write', 'append', 'truncate', 'read_mapped', 'write_mapped', 'allocate', 'collapse_or_insert', 'copy_range', 'direct', 'reopen')

    def step(self):
        move = self.rng.choice(self.MOVES)
        self.done = self.done[-8:] + [move]
        return getattr(self, move)()


class Trees:
    """The same operation on the mount and on a plain twin: the same result, errno, and attributes."""

    def __init__(self, mount, twin, rng):
        self.roots, self.rng = (mount.path, twin), rng

    def name(self):
        depth = self.rng.randrange(1, 4)
        return '/'.join(self.rng.choice('abcd') for _ in range(depth))

    def make_file(self, root, name, other, number):
        fd = os.open(f'{root}/{name}', os.O_CREAT | os.O_WRONLY | (os.O_EXCL if number % 2 else 0), 0o600 + number % 64)
        os.write(fd, b'%d' % number)
        os.close(fd)

    def read(self, root, name, other, number):
        with open(f'{root}/{name}', 'rb') as file:
            return file.read()

    def truncate(self, root, name, other, number):
        os.truncate(f'{root}/{name}', number % 10000)

    def make_directory(self, root, name, other, number):
        os.mkdir(f'{root}/{name}', 0o700 + number % 64)

    def remove(self, root, name, other, number):
        os.unlink(f'{root}/{name}')

    def remove_directory(self, root, name, other, number):
        os.rmdir(f'{root}/{name}')

    def rename(self, root, name, other, number):
        os.rename(f'{root}/{name}', f'{root}/{other}')

    def link(self, root, name, other, number):
        os.link(f'{root}/{name}', f'{root}/{other}', follow_symlinks=False)

    def symlink(self, root, name, other, number):
        os.symlink(other, f'{root}/{name}')

    def read_link(self, root, name, other, number):
        return os.readlink(f'{root}/{name}')

    def mode(self, root, name, other, number):
        os.chmod(f'{root}/{name}', number % 0o10000)

    def owner(self, root, name, other, number):
        os.chown(f'{root}/{name}', number % 3, number % 5, follow_symlinks=False)

    def times(self, root, name, other, number):
        os.utime(f'{root}/{name}', ns=(number * 1000, number * 2000), follow_symlinks=False)

    def attribute(self, root, name, other, number):
        if number % 3 == 0:
            os.removexattr(f'{root}/{name}', 'user.x')
        elif number % 3 == 1:
            os.setxattr(f'{root}/{name}', 'user.x', b'%d' % number)
        else:
            return os.getxattr(f'{root}/{name}', 'user.x')

    def fifo(self, root, name, other, number):
        os.mkfifo(f'{root}/{name}')

    def list(self, root, name, other, number):
        return sorted(os.listdir(f'{root}/{name}'))

    def attributes(self, root, name, other, number):
        attr = os.lstat(f'{root}/{name}')
        size = 0 if stat.S_ISDIR(attr.st_mode) else attr.st_size
        return attr.st_mode, attr.st_nlink, attr.st_uid, attr.st_gid, size

    MOVES = ('make_file', 'make_file', 'read', 'truncate', 'make_directory', 'remove', 'remove_directory', 'rename', 'link', 'symlink', 'read_link',
             'mode', 'owner', 'times', 'attribute', 'fifo', 'list', 'attributes', 'attributes')

    def step(self):
        move, name, other, number = self.rng.choice(self.MOVES), self.name(), self.name(), self.rng.randrange(1 << 30)
        results = []
        for root in self.roots:
            if move in ('read', 'make_file', 'truncate') and stat.S_ISFIFO(self.kind(f'{root}/{name}')):
                results.append('a fifo would wait')
                continue
            try:
                results.append(getattr(self, move)(root, name, other, number))
            except OSError as error:
                results.append(errno.errorcode[error.errno])
        if results[0] != results[1]:
            return f'{move} {name} {other} {number}: {results[0]!r} through the mount, {results[1]!r} without'

    @staticmethod
    def kind(path):
        try:
            return os.stat(path).st_mode
        except OSError:
            return 0

    def compare(self):
        """Every path, attribute, content and link of both."""
        sides = []
        for root in self.roots:
            found = {}
            for directory, names, files in os.walk(root):
                for name in names + files:
                    path = os.path.join(directory, name)
                    attr = os.lstat(path)
                    data = os.readlink(path) if stat.S_ISLNK(attr.st_mode) else None
                    if stat.S_ISREG(attr.st_mode):
                        with open(path, 'rb') as file:
                            data = file.read()
                    xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)}
                    size = None if stat.S_ISDIR(attr.st_mode) else attr.st_size
                    found[path[len(root):]] = (attr.st_mode, attr.st_nlink, attr.st_uid, attr.st_gid, size, data, xattrs)
            sides.append(found)
        for path in sorted(set(sides[0]) | set(sides[1])):
            if sides[0].get(path) != sides[1].get(path):
                return f'{path}: {sides[0].get(path)!r} through the mount, {sides[1].get(path)!r} without'


class Models(unittest.TestCase):
    def one_file(self, *options):
        with Mount(*options) as mount:
            file = OneFile(mount, random.Random(SEED))
            self.addCleanup(os.close, file.fd)
            for number in range(STEPS):
                wrong = file.step()
                if not wrong and number % 100 == 99:
                    wrong = file.whole()
                self.assertIsNone(wrong, f'SEED={SEED}, step {number}, after {file.done}')
            self.assertEqual(0, mount.verify().returncode)
            os.close(file.fd)
            file.fd = os.open('/dev/null', os.O_RDONLY)

    def test_one_file(self):
        self.one_file()

    def test_one_file_without_passthrough(self):
        self.one_file('--no-passthrough')

    def test_a_tree_and_its_twin(self):
        for options in ((), ('--no-passthrough',)):
            with Mount(*options) as mount:
                twin = mount.work + '/twin'
                os.mkdir(twin)
                trees = Trees(mount, twin, random.Random(SEED))
                for number in range(STEPS // 2):
                    wrong = trees.step()
                    if not wrong and number % 1000 == 999:
                        wrong = trees.compare()
                    self.assertIsNone(wrong, f'SEED={SEED}, step {number}, {options}')
                self.assertEqual(0, mount.verify().returncode)
                subprocess.run(['rm', '-rf', mount.path + '/a'], check=True)  # shutil.rmtree would open it, and wait if it is a FIFO


if __name__ == '__main__':
    print(f'SEED={SEED}', flush=True)
    run_tests()
