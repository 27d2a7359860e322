"""The same steps on a mount and on the plain file system below it, and what helps to write them down."""
import ctypes
import errno
import itertools
import os
import stat
import time
import unittest

from mounting import Mount

LIBC = ctypes.CDLL(None, use_errno=True)
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
USER, GROUP, OTHER_GROUP, STRANGER = 1234, 2345, 3456, 99
CALLERS = {'root': (0, 0, []), 'user': (USER, GROUP, []), 'member': (USER, GROUP, [OTHER_GROUP]), 'stranger': (STRANGER, STRANGER, [])}
KINDS = ('file', 'directory', 'fifo', 'symlink', 'socket', 'device')


def attempt(work):
    """The result of `work`, or the name of its error."""
    try:
        return work()
    except OSError as error:
        return errno.errorcode[error.errno]


def as_user(uid, gid, groups, work):
    """Runs `work` in a child with these ids; its result comes back as text."""
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
    os.waitpid(child, 0)
    with os.fdopen(reader) as result:
        return result.read()


def as_caller(name, work):
    return as_user(*CALLERS[name], work)


def renameat2(old, new, flags):
    if LIBC.renameat2(-100, old.encode(), -100, new.encode(), flags) != 0:
        raise OSError(ctypes.get_errno(), 'renameat2')


def opened(path, flags, mode=0o666):
    os.close(os.open(path, flags | os.O_NONBLOCK, mode))
    return 'opened'


def system(call, *words):
    result = getattr(LIBC, call)(*words)
    if result < 0:
        raise OSError(ctypes.get_errno(), call)
    return result


def described(path):
    attr = os.lstat(path)
    return (oct(attr.st_mode), attr.st_uid, attr.st_gid, attr.st_nlink, attr.st_size if stat.S_ISREG(attr.st_mode) else 0, attr.st_rdev)


def seen(path):
    return described(path) if os.path.lexists(path) else None


def moved(path, work, later=0.0045):
    """What `work` gives, and which times of `path` it moved: a, m, c. The clock of files ticks every 4 ms."""
    def times():
        attr = os.lstat(path)
        return attr.st_atime_ns, attr.st_mtime_ns, attr.st_ctime_ns
    before = times()
    time.sleep(later)
    outcome = attempt(work)
    return outcome, ''.join(name for name, old, new in zip('amc', before, times()) if old != new)


def make(directory, kind, name):
    path = f'{directory}/{name}'
    if kind == 'file':
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o6777))
    elif kind == 'directory':
        os.mkdir(path, 0o2777)
    elif kind == 'fifo':
        os.mkfifo(path, 0o666)
    elif kind == 'symlink':
        os.symlink('target', path)
    elif kind == 'device':
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    elif kind == 'socket':
        os.mknod(path, stat.S_IFSOCK | 0o755)
    return described(path)


def remove(path):
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for name in os.listdir(path):
            remove(f'{path}/{name}')
        os.rmdir(path)
    else:
        os.unlink(path)


class Twins(unittest.TestCase):
    options = ('--tpm', 'none')

    @classmethod
    def setUpClass(cls):
        cls.mount = Mount(*cls.options)
        cls.mount.start()
        os.chmod(cls.mount.work, 0o755)
        cls.count = itertools.count()

    @classmethod
    def tearDownClass(cls):
        cls.mount.__exit__()

    def same(self, work, prepare=None):
        """`work(directory)` gives the same on the mount and on the plain tree."""
        number = next(self.count)
        plain, mounted = f'{self.mount.work}/plain{number}', f'{self.mount.path}/d{number}'
        results = []
        for directory in (plain, mounted):
            os.mkdir(directory)
            os.chmod(directory, 0o777)
            if prepare:
                prepare(directory)
            results.append(work(directory))
        if isinstance(results[0], list) and len(results[0]) == len(results[1]):
            for plain, mounted in zip(*results):
                self.assertEqual(plain, mounted)
        self.assertEqual(results[0], results[1])
        return results[1]
