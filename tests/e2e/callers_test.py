#!/usr/bin/env python3
"""Nobody gets more through the mount than below it: calls whose names and attributes the kernel knows from before somebody
changed them outside the mount. The mounts here keep them for an hour and are told of no change, so that each call meets the
moment which is a tenth of a second long elsewhere."""
import fcntl
import itertools
import os
import random
import select
import shutil
import signal
import struct
import unittest

from mounting import Mount, run_tests
from twins import GROUP, RENAME_EXCHANGE, STRANGER, attempt, renameat2, system

CAPABILITY = bytes.fromhex('0100000200040000000000000000000000000000')
CELLS = int(os.environ.get('CELLS', '120'))  # 0: all 3,996
SEED = int(os.environ.get('SEED', '0')) or random.randrange(1, 1 << 30)
PATIENCE = 20.0  # seconds; none of these calls waits for anything

STALE = ('--tpm', 'none', '--no-watch', '--timeout', '3600')


def write(path, data=b'data', mode=0o644):
    with open(path, 'wb') as file:
        file.write(data)
    os.chmod(path, mode)


def as_caller(uid, gid, groups, capabilities, work):
    """Runs `work` in a child with these ids; its result comes back as text. A child that waits for ever is left behind."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            become(uid, gid, groups, capabilities)
            os.umask(0o022)
            os.write(writer, repr(attempt(work)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as result:
        if not select.select([result], [], [], PATIENCE)[0]:
            os.kill(child, signal.SIGKILL)
            return 'waits for ever'
        os.waitpid(child, 0)
        return result.read()


class Stale(unittest.TestCase):
    options = STALE

    @classmethod
    def setUpClass(cls):
        cls.mount = Mount(*cls.options)
        cls.mount.start()
        os.chmod(cls.mount.work, 0o755)

    @classmethod
    def tearDownClass(cls):
        cls.mount.__exit__()


class CreatingWhatIsThere(Stale):
    """open(O_CREAT) of a name that the kernel believes absent."""

    def made_outside(self, make, flags, uid=STRANGER):
        directory = f'{self.mount.backing}/{self.id()}'
        os.mkdir(directory)
        os.chmod(directory, 0o1777)
        results = []
        for number, root in enumerate((self.mount.path, self.mount.backing)):
            name = f'{self.id()}/name{number}'
            attempt(lambda: os.stat(f'{self.mount.path}/{name}'))
            make(f'{self.mount.backing}/{name}')

            def call():
                fd = os.open(f'{root}/{name}', flags, 0o600)
                try:
                    return os.fstat(fd).st_uid, attempt(lambda: os.read(fd, 100)), attempt(lambda: os.write(fd, b'written'))
                finally:
                    os.close(fd)
            results.append(as_caller(uid, uid, [], None if uid == 0 else [], call))
        self.assertEqual(results[0], results[1])
        return results[0]

    def test_a_file_of_root(self):
        self.assertEqual(self.made_outside(lambda path: write(path, mode=0o600), os.O_RDWR | os.O_CREAT), repr('EACCES'))

    def test_a_file_of_root_that_anybody_may_read(self):
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
            with self.subTest(flags=flags):
                self.id = lambda flags=flags: f'readable{flags}'
                self.made_outside(lambda path: write(path, mode=0o644), flags | os.O_CREAT)

    def test_exclusively(self):
        self.assertEqual(self.made_outside(write, os.O_RDWR | os.O_CREAT | os.O_EXCL), repr('EEXIST'))

    def test_a_link_to_a_file_of_root(self):
        write(self.mount.backing + '/secret', mode=0o600)
        self.made_outside(lambda path: os.symlink('../secret', path), os.O_RDWR | os.O_CREAT)

    def test_a_directory(self):
        self.assertEqual(self.made_outside(os.mkdir, os.O_RDWR | os.O_CREAT), repr('EISDIR'))

    def test_a_fifo(self):
        self.made_outside(lambda path: os.mkfifo(path, 0o600), os.O_RDWR | os.O_CREAT | os.O_NONBLOCK)

    def test_root_is_served(self):
        self.assertEqual(self.made_outside(write, os.O_RDWR | os.O_CREAT, uid=0), repr((0, b'data', 7)))


class CreatingWhatIsThereWithoutPassthrough(CreatingWhatIsThere):
    options = (*STALE, '--no-passthrough')


# Who calls: uid, gid, supplementary groups, capabilities. The file is the owner's, its group is GROUP.
OWNER, MEMBER, ROOT = 1234, 1235, 0
CHOWN, DAC_OVERRIDE, FOWNER, FSETID, LINUX_IMMUTABLE, SYS_ADMIN, SETFCAP = 0, 1, 3, 4, 9, 21, 31
CALLERS = {
    'owner': (OWNER, OWNER, [], []),
    'group': (MEMBER, MEMBER, [GROUP], []),
    'other': (STRANGER, STRANGER, [], []),
    'fowner': (STRANGER, STRANGER, [], [FOWNER]),
    'override': (STRANGER, STRANGER, [], [DAC_OVERRIDE]),
    'chown': (STRANGER, STRANGER, [], [CHOWN]),
    'setfcap': (STRANGER, STRANGER, [], [SETFCAP]),
    'root': (ROOT, ROOT, [], None),
    'bare root': (ROOT, ROOT, [], []),
}
ACL_ACCESS = 'system.posix_acl_access'
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, IMMUTABLE, APPEND, NODUMP = 0x80086601, 0x40086602, 0x10, 0x20, 0x40
PR_SET_KEEPCAPS, PR_CAPBSET_DROP = 8, 24


def acl(*entries):
    """An access control list as the kernel has it: (tag, permissions, id)."""
    return struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *entry) for entry in entries)


NOBODY_ELSE = 0xffffffff
DENYING = acl((1, 6, NOBODY_ELSE), (2, 0, STRANGER), (2, 0, MEMBER), (4, 6, NOBODY_ELSE), (16, 6, NOBODY_ELSE), (32, 6, NOBODY_ELSE))
OPEN_TO_ALL = acl((1, 6, NOBODY_ELSE), (2, 6, STRANGER), (4, 6, NOBODY_ELSE), (16, 6, NOBODY_ELSE), (32, 4, NOBODY_ELSE))


def chattr(path, flags):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        others = struct.unpack('l', fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))[0] & ~(IMMUTABLE | APPEND)
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack('l', others | flags))
    finally:
        os.close(fd)


def become(uid, gid, groups, capabilities):
    """None: every capability."""
    if capabilities is not None:
        system('prctl', PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    if uid != 0:
        os.setresuid(uid, uid, uid)
    if capabilities is None:
        return
    mask = sum(1 << number for number in capabilities)
    low, high = mask & 0xffffffff, mask >> 32
    header, sets = struct.pack('<Ii', 0x20080522, 0), struct.pack('<6I', low, low, 0, high, high, 0)
    system('capset', header, sets)


def opening(flags):
    def work(d):
        os.close(os.open(d + '/file', flags))
    return work


def executing(d):
    child = os.fork()
    if child == 0:
        try:
            os.execv(d + '/program', ['program'])
        except OSError as error:
            os._exit(error.errno)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 0:
        raise OSError(code, 'execv')


# Each call as it is made in the directory.
CALLS = {
    'chmod': lambda d: os.chmod(d + '/file', 0o4755),
    'chmod of a directory': lambda d: os.chmod(d + '/directory', 0o2777),
    'chown': lambda d: os.chown(d + '/file', STRANGER, -1),
    'chgrp': lambda d: os.chown(d + '/file', -1, GROUP),
    'utime': lambda d: os.utime(d + '/file', (1, 1)),
    'touch': lambda d: os.utime(d + '/file'),
    'truncate': lambda d: os.truncate(d + '/file', 2),
    'set a user attribute': lambda d: os.setxattr(d + '/file', 'user.new', b'value'),
    'remove a user attribute': lambda d: os.removexattr(d + '/file', 'user.old'),
    'read a user attribute': lambda d: os.getxattr(d + '/file', 'user.old'),
    'set a file capability': lambda d: os.setxattr(d + '/file', 'security.capability', CAPABILITY),
    'set a trusted attribute': lambda d: os.setxattr(d + '/file', 'trusted.new', b'value'),
    'set an ACL': lambda d: os.setxattr(d + '/file', ACL_ACCESS, OPEN_TO_ALL),
    'set a default ACL': lambda d: os.setxattr(d + '/directory', 'system.posix_acl_default', OPEN_TO_ALL),
    'chattr': lambda d: chattr(d + '/file', NODUMP),
    'open to read': opening(os.O_RDONLY),
    'open to write': opening(os.O_WRONLY),
    'open for both': opening(os.O_RDWR),
    'open to append': opening(os.O_WRONLY | os.O_APPEND),
    'open and truncate': opening(os.O_WRONLY | os.O_TRUNC),
    'open without atime': opening(os.O_RDONLY | os.O_NOATIME),
    'open or create': lambda d: os.close(os.open(d + '/file', os.O_RDWR | os.O_CREAT, 0o600)),
    'exec': executing,
    'list': lambda d: sorted(os.listdir(d + '/directory')),
    'create': lambda d: os.close(os.open(d + '/new', os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o6666)),
    'mknod': lambda d: os.mknod(d + '/new', 0o010644),
    'mkdir': lambda d: os.mkdir(d + '/new', 0o2777),
    'symlink': lambda d: os.symlink('target', d + '/new'),
    'link': lambda d: os.link(d + '/file', d + '/new'),
    'unlink': lambda d: os.unlink(d + '/file'),
    'rmdir': lambda d: os.rmdir(d + '/directory'),
    'rename': lambda d: os.rename(d + '/file', d + '/new'),
    'rename over': lambda d: os.rename(d + '/mine', d + '/file'),
    'rename out': lambda d: os.rename(d + '/file', d + '/into/file'),
    'rename into': lambda d: os.rename(d + '/into/other', d + '/new'),
    'exchange': lambda d: renameat2(d + '/mine', d + '/file', RENAME_EXCHANGE),
    'rename a directory': lambda d: os.rename(d + '/directory', d + '/new'),
}


def replace(path):
    """Somebody else's file is there now."""
    os.rename(path, path + '.old')
    write(path, b'somebody else', 0o600)


def each(*names):
    def decorate(change):
        return lambda d: [change(f'{d}/{name}') for name in names]
    return decorate


ALL = ('file', 'program', 'directory', 'mine')
# What somebody does in the directory below, a moment before the call. `d` itself is an entry of a directory of root's.
CHANGES = {
    'nothing': lambda d: None,
    'the owner is another': each(*ALL)(lambda path: os.chown(path, ROOT, ROOT)),
    'the mode is less': each(*ALL)(lambda path: os.chmod(path, 0o600)),
    'the mode is nothing': each(*ALL)(lambda path: os.chmod(path, 0)),
    'the group is another': each(*ALL)(lambda path: os.chown(path, -1, ROOT)),
    'the directory is sticky': lambda d: (os.chown(d, ROOT, ROOT), os.chmod(d, 0o1777), os.chown(d + '/file', ROOT, ROOT)),
    'the directory is another\'s': lambda d: (os.chown(d, ROOT, ROOT), os.chmod(d, 0o755)),
    'the directory is closed': lambda d: (os.chown(d, ROOT, ROOT), os.chmod(d, 0o711)),
    'an ACL denies': each('file', 'program')(lambda path: os.setxattr(path, ACL_ACCESS, DENYING)),
    'immutable': each('file', 'program', 'directory')(lambda path: chattr(path, IMMUTABLE)),
    'append-only': each('file')(lambda path: chattr(path, APPEND)),
    'another object': each('file', 'program')(replace),
}


def content(path):
    with open(path, 'rb') as file:
        return file.read()


def state_of(directory):
    """What there is, as far as a call may have changed it."""
    found = []
    for root, names, files in os.walk(directory):
        for name in sorted(names + files):
            path = f'{root}/{name}'
            attr = os.lstat(path)
            data = content(path) if name in ('file', 'new', 'mine') and os.path.isfile(path) else None
            attributes = [(key, os.getxattr(path, key, follow_symlinks=False)) for key in sorted(os.listxattr(path, follow_symlinks=False))]
            found.append((path[len(directory):], oct(attr.st_mode), attr.st_uid, attr.st_gid, data, attributes, attr.st_mtime == 1))
    return sorted(found, key=lambda entry: entry[0])


def lay_out(d):
    os.mkdir(d)
    write(d + '/file')
    write(d + '/mine', b'mine')
    shutil.copy(shutil.which('true'), d + '/program')
    os.mkdir(d + '/directory')
    os.mkdir(d + '/into')
    os.chmod(d + '/into', 0o777)
    write(d + '/into/other', b'other')
    os.setxattr(d + '/file', 'user.old', b'value')
    for name, mode in (('file', 0o664), ('mine', 0o664), ('program', 0o775), ('directory', 0o775)):
        os.chown(f'{d}/{name}', OWNER, GROUP)
        os.chmod(f'{d}/{name}', mode)
    os.chown(d, OWNER, GROUP)
    os.chmod(d, 0o777)


def clear(d):
    for root, names, files in os.walk(d):
        for name in names + files:
            if not os.path.islink(f'{root}/{name}'):
                attempt(lambda: chattr(f'{root}/{name}', 0))
    shutil.rmtree(d)


def know(d):
    """The caller asks for all there is, so that the kernel keeps it."""
    for name in ('', *ALL, 'into', 'into/other', 'new', 'into/file'):
        attempt(lambda: os.stat(f'{d}/{name}'))
    attempt(lambda: os.getxattr(d + '/file', ACL_ACCESS))
    attempt(lambda: os.getxattr(d + '/program', ACL_ACCESS))


def is_refused(answer):
    return answer.startswith("'E") or answer == 'waits for ever'


def is_more(change, plain, mounted):
    """Whether a caller got more through the mount than below it. The kernel refuses by what it knows, so it may refuse what is
    allowed now, and by another error; where nothing has changed all must be the same."""
    (below, state), (above, mounted_state) = plain, mounted
    if change == 'nothing':
        return plain != mounted
    if change == 'another object':
        # The call may reach the object that the kernel knows, by its new name, but not the one that has its place now: that one
        # is as it was, unless the same call may change it below.
        taken = [sorted(entry for entry in one if entry[4] == b'somebody else') for one in (state, mounted_state)]
        return is_refused(below) and ('somebody' in above or taken[0] != taken[1])
    if is_refused(above):
        return is_refused(below) and state != mounted_state
    return plain != mounted


class EveryCall(Stale):
    """Every call, by every caller, after every change that the kernel has not been told of."""

    def test_as_below(self):
        every = [(change, call, caller) for change in CHANGES for call in CALLS for caller in CALLERS]
        cells = every if CELLS == 0 else random.Random(SEED).sample(every, CELLS)
        results = {}
        for place in ('plain', 'mount'):
            for number, (change, call, caller) in enumerate(cells):
                below = f'{self.mount.backing}/{place}{number}'
                above = f'{self.mount.path}/{place}{number}' if place == 'mount' else below
                lay_out(below)
                if place == 'mount':
                    know(above)
                attempt(lambda: CHANGES[change](below))
                answer = as_caller(*CALLERS[caller], lambda: CALLS[call](above))
                results.setdefault((change, call, caller), []).append((answer, state_of(below)))
                clear(below)
        wrong = [(cell, plain[0], mounted[0], [pair for pair in itertools.zip_longest(plain[1], mounted[1]) if pair[0] != pair[1]])
                 for cell, (plain, mounted) in results.items() if is_more(cell[0], plain, mounted)]
        for one in wrong[:int(os.environ.get('SHOWN', '20'))]:
            print(*one, sep='\n    ')
        self.assertEqual(len(wrong), 0, f'{len(wrong)} of {len(cells)} differ (SEED={SEED})')


class EveryCallWithoutPassthrough(EveryCall):
    options = (*STALE, '--no-passthrough')


if __name__ == '__main__':
    run_tests()
