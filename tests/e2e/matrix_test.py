"""Each call on each kind of name, by each caller: results, owners, modes and times as on the plain tree."""
import itertools
import os
import stat

from mounting import run_tests
from twins import (CALLERS, GROUP, KINDS, OTHER_GROUP, STRANGER, USER, Twins, as_caller, attempt, described, make, moved, opened,
                   remove, renameat2, seen)

# Each takes a path.
CALLS = {
    'open': lambda path: opened(path, os.O_RDONLY), 'open to write': lambda path: opened(path, os.O_WRONLY),
    'open both': lambda path: opened(path, os.O_RDWR), 'open, truncate': lambda path: opened(path, os.O_WRONLY | os.O_TRUNC),
    'open to read, truncate': lambda path: opened(path, os.O_RDONLY | os.O_TRUNC), 'create': lambda path: opened(path, os.O_WRONLY | os.O_CREAT),
    'create new': lambda path: opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), 'open as directory': lambda path: opened(path, os.O_DIRECTORY),
    'open, no link': lambda path: opened(path, os.O_NOFOLLOW), 'open path': lambda path: opened(path, os.O_PATH),
    'open nameless': lambda path: opened(path, os.O_TMPFILE | os.O_RDWR), 'open, keep atime': lambda path: opened(path, os.O_NOATIME),
    'mkdir': os.mkdir, 'rmdir': os.rmdir, 'mkfifo': os.mkfifo, 'mknod': lambda path: os.mknod(path, stat.S_IFREG | 0o644),
    'mknod device': lambda path: os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 3)), 'unlink': os.unlink,
    'symlink': lambda path: os.symlink('t', path), 'readlink': os.readlink, 'chmod': lambda path: os.chmod(path, 0o711),
    'chown': lambda path: os.chown(path, USER, GROUP), 'lchown': lambda path: os.lchown(path, USER, GROUP),
    'truncate': lambda path: os.truncate(path, 3), 'utime': os.utime, 'utimes': lambda path: os.utime(path, (1, 1)),
    'stat': lambda path: os.stat(path).st_nlink, 'lstat': lambda path: os.lstat(path).st_nlink, 'access': lambda path: os.access(path, os.W_OK),
    'list': lambda path: len(os.listdir(path)), 'get attribute': lambda path: os.getxattr(path, 'user.q'),
    'set attribute': lambda path: os.setxattr(path, 'user.q', b'1'), 'set trusted': lambda path: os.setxattr(path, 'trusted.q', b'1'),
    'link from': lambda path: os.link(path, os.path.dirname(path.rstrip('/')) + '/made', follow_symlinks=False),
    'rename from': lambda path: os.rename(path, os.path.dirname(path.rstrip('/')) + '/made'),
}


def fill(directory):
    for kind in KINDS:
        make(directory, kind, kind)
    for name, target in (('loop', 'loop'), ('one', 'two'), ('two', 'one'), ('to file', 'file'), ('to directory', 'directory')):
        os.symlink(target, f'{directory}/{name}')
    os.mkdir(directory + '/full')
    make(directory + '/full', 'file', 'x')


def padded(directory, length):
    """A path of `length` bytes to the file in it."""
    missing = length - len(directory) - len('/file')
    return directory + '/.' * (missing // 2) + '/' * (missing % 2) + '/file'


class Matrix(Twins):
    def test_each_call_on_each_kind_of_name(self):
        names = (*KINDS, 'loop', 'one', 'to file', 'to directory', 'full', 'none', 'none/x', 'file/x', 'file/', 'to file/', 'to directory/',
                 'symlink/', 'directory/.', 'directory/..', 'loop/x', 'to file/x', 'n' * 255, 'n' * 256, '…' * 85 + 'x', '.', '')

        def work(directory):
            outcome = []
            for call, name in itertools.product(CALLS, names):
                base = f'{directory}/{len(outcome)}'
                os.mkdir(base)
                fill(base)
                result = attempt(lambda: CALLS[call](base + '/' + name if name else ''))
                outcome.append((call, name[:20], result, sorted(os.listdir(base)), seen(base + '/' + (name.split('/')[0] or '.'))))
                remove(base)
            return outcome
        self.same(work)

    def test_paths_as_long_as_paths_can_be(self):
        def work(directory):
            os.close(os.open(directory + '/file', os.O_CREAT))
            here = os.getcwd()
            deep = directory + '/deep'
            os.mkdir(deep)
            try:
                os.chdir(deep)
                for _ in range(20):
                    os.mkdir('d' * 250)
                    os.chdir('d' * 250)
                make('.', 'file', 'bottom')
                bottom = described('bottom')
            finally:
                os.chdir(here)
            return bottom, [(call, length, attempt(lambda: CALLS[call](padded(directory, length))))
                            for call in ('open', 'stat', 'mkdir', 'truncate', 'chmod', 'readlink', 'rmdir') for length in (4095, 4096)]
        self.same(work)

    def test_what_is_made_where_and_by_whom(self):
        def work(directory):
            outcome = []
            for kind, caller, mode, umask in itertools.product(KINDS, CALLERS, (0o777, 0o2777, 0o1777, 0o755, 0o2775, 0o575), (0, 0o027)):
                base = f'{directory}/{len(outcome)}'
                os.mkdir(base)
                os.chown(base, STRANGER, OTHER_GROUP)
                os.chmod(base, mode)
                old = os.umask(umask)
                result = as_caller(caller, lambda: make(base, kind, 'x'))
                os.umask(old)
                outcome.append((kind, caller, oct(mode), oct(umask), result, seen(base + '/x'), described(base)))
            return outcome
        self.same(work)

    def test_modes_with_which_things_are_made(self):
        def work(directory):
            outcome = []
            modes = (0, 0o151, 0o7777, 0o2755, 0o2644, 0o4755)
            for mode, above, caller, umask in itertools.product(modes, (0o777, 0o2777), CALLERS, (0, 0o501)):
                base = f'{directory}/{len(outcome)}'
                os.mkdir(base)
                os.chown(base, STRANGER, OTHER_GROUP)
                os.chmod(base, above)
                old = os.umask(umask)
                calls = (lambda: opened(base + '/f', os.O_CREAT | os.O_RDWR, mode), lambda: os.mkdir(base + '/d', mode),
                         lambda: os.mkfifo(base + '/p', mode), lambda: os.mknod(base + '/r', mode | stat.S_IFREG))
                result = as_caller(caller, lambda: [attempt(call) for call in calls])
                os.umask(old)
                outcome.append((oct(mode), oct(above), caller, oct(umask), result, [seen(f'{base}/{name}') for name in 'fdpr']))
            return outcome
        self.same(work)

    def test_who_may_what_in_whose_directory(self):
        actions = ('open', 'open to write', 'open, truncate', 'open, keep atime', 'unlink', 'chmod', 'utime', 'utimes', 'truncate', 'set attribute',
                   'set trusted', 'rename from', 'link from', 'stat')

        def work(directory):
            outcome = []
            modes = [(0o777, mode) for mode in (0o644, 0o600, 0o060, 0o006, 0o222)] + \
                [(mode, 0o666) for mode in (0o755, 0o711, 0o744, 0o1777, 0o070, 0o007)]
            for (above, mode), call, caller in itertools.product(modes, actions, ('user', 'member', 'stranger')):
                base = f'{directory}/{len(outcome)}'
                os.mkdir(base)
                make(base, 'file', 'f')
                os.chown(base + '/f', STRANGER, OTHER_GROUP)
                os.chmod(base + '/f', mode)
                os.chown(base, STRANGER, OTHER_GROUP)
                os.chmod(base, above)
                outcome.append((oct(above), oct(mode), call, caller, as_caller(caller, lambda: CALLS[call](base + '/f')), seen(base + '/f')))
            return outcome
        self.same(work)

    def test_chmod_and_chown_of_each_kind(self):
        def work(directory):
            outcome = []
            for kind, caller, owner in itertools.product(KINDS, CALLERS, ((0, 0), (USER, GROUP), (USER, OTHER_GROUP))):
                changes = [('mode', mode) for mode in (0o111, 0o7777, 0o2755, 0o2644)] if kind != 'symlink' else []
                changes += [('owner', new) for new in ((USER, -1), (-1, OTHER_GROUP), (USER, GROUP), (0, 0), (-1, STRANGER), (STRANGER, -1))]
                for what, new in changes:
                    make(directory, kind, 'x')
                    path = directory + '/x'
                    os.lchown(path, *owner)
                    if kind != 'symlink':
                        os.chmod(path, 0o6755)
                    before = os.lstat(path).st_ctime_ns
                    result = as_caller(caller, lambda: os.chmod(path, new) if what == 'mode' else os.lchown(path, *new))
                    unmoved = os.lstat(path).st_ctime_ns == before
                    outcome.append((kind, caller, owner, what, new, result, described(path), unmoved if result != 'None' else 'may'))
                    remove(path)
            return outcome
        self.same(work)

    def test_sticky_directories(self):
        def work(directory):
            outcome = []
            cases = itertools.product(('remove', 'rename', 'replace', 'exchange'), ('file', 'directory', 'symlink'), (0o1777, 0o777),
                                      (0, USER, STRANGER), (0, USER), (USER, STRANGER))
            for act, kind, sticky, above, owner, there in cases:
                one, two = directory + '/one', directory + '/two'
                for base in (one, two):
                    os.mkdir(base)
                    make(base, kind, 'x')
                os.lchown(one + '/x', owner, OTHER_GROUP)
                os.lchown(two + '/x', there, OTHER_GROUP)
                os.chown(one, above, GROUP)
                os.chmod(one, sticky)
                os.chmod(two, 0o1777)
                acts = {'remove': lambda: remove(one + '/x'), 'rename': lambda: os.rename(one + '/x', two + '/y'),
                        'replace': lambda: os.rename(one + '/x', two + '/x'), 'exchange': lambda: renameat2(one + '/x', two + '/x', 2)}
                outcome.append((act, kind, oct(sticky), above, owner, there, as_caller('user', acts[act]),
                                [seen(path) for path in (one + '/x', two + '/x', two + '/y', one, two)]))
                remove(one)
                remove(two)
            return outcome
        self.same(work)

    def test_a_rename_of_anything_to_anything(self):
        kinds = (*KINDS, 'full', 'none', 'link', 'itself')

        def put(base, kind, name):
            if kind == 'full':
                os.mkdir(f'{base}/{name}')
                make(f'{base}/{name}', 'file', 'in')
            elif kind == 'link':
                os.link(base + '/linked', f'{base}/{name}')
            elif kind not in ('none', 'itself'):
                make(base, kind, name)

        def work(directory):
            outcome = []
            for old, new, flags in itertools.product(kinds[:-1], kinds, (0, 1, 2, 3, 4, 8)):
                base = directory + '/base'
                os.mkdir(base)
                make(base, 'file', 'linked')
                put(base, old, 'x')
                put(base, new, 'y')
                which = {os.lstat(f'{base}/{name}').st_ino: name for name in sorted(os.listdir(base))}
                result = attempt(lambda: renameat2(base + '/x', base + ('/x' if new == 'itself' else '/y'), flags))
                after = [(name, which.get(os.lstat(f'{base}/{name}').st_ino), described(f'{base}/{name}')) for name in sorted(os.listdir(base))]
                outcome.append((old, new, flags, result, after, described(base)))
                remove(base)
            return outcome
        self.same(work)

    def test_directories_that_move(self):
        def work(directory):
            outcome = []
            for owner, mode, above in itertools.product((0, USER, STRANGER), (0o755, 0o777, 0o555), (0o777, 0o1777)):
                for name in 'ab':
                    os.mkdir(f'{directory}/{name}')
                    os.chmod(f'{directory}/{name}', above)
                os.makedirs(directory + '/a/x/y/z')
                os.chown(directory + '/a/x', owner, OTHER_GROUP)
                os.chmod(directory + '/a/x', mode)
                moves = ('a/x', 'a/w'), ('a/w', 'b/w'), ('a/x', 'a/x/y'), ('a/w', 'a/w/y/z/q')
                for old, new in moves:
                    result = as_caller('user', lambda: os.rename(f'{directory}/{old}', f'{directory}/{new}'))
                    outcome.append((owner, oct(mode), oct(above), old, result, described(directory + '/a'), described(directory + '/b')))
                if os.path.isdir(directory + '/b/w'):
                    outcome.append(os.stat(directory + '/b/w/..').st_ino == os.stat(directory + '/b').st_ino)
                for name in 'ab':
                    remove(f'{directory}/{name}')
            return outcome
        self.same(work)

    def test_links(self):
        def work(directory):
            outcome = []
            owners = ((0, 0o644), (USER, 0o600), (STRANGER, 0o666), (STRANGER, 0o600), (STRANGER, 0o2767))
            for kind, caller, (owner, mode) in itertools.product(KINDS, CALLERS, owners):
                make(directory, kind, 'x')
                path, name = directory + '/x', directory + '/y'
                os.lchown(path, owner, GROUP)
                if kind != 'symlink':
                    os.chmod(path, mode)
                result = as_caller(caller, lambda: os.link(path, name, follow_symlinks=False))
                outcome.append((kind, caller, owner, oct(mode), result, described(path), seen(name)))
                if os.path.lexists(name):
                    outcome[-1] += (os.lstat(path).st_ino == os.lstat(name).st_ino, moved(path, lambda: os.unlink(name), 0.0042), described(path))
                remove(path)
            return outcome
        self.same(work)


class MatrixWithoutPassthrough(Matrix):
    options = ('--tpm', 'none', '--no-passthrough')


if __name__ == '__main__':
    run_tests()
