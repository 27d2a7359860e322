"""POSIX semantics of the mount, each compared with the same steps on the plain file system below it."""
import ctypes
import errno
import fcntl
import itertools
import os
import stat
import threading
import time
import unittest

from mounting import Mount

LIBC = ctypes.CDLL(None, use_errno=True)
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
USER, GROUP, OTHER_GROUP = 1234, 2345, 3456


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
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        os.write(writer, repr(attempt(work)).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as result:
        return result.read()


def renameat2(old, new, flags):
    if LIBC.renameat2(-100, old.encode(), -100, new.encode(), flags) != 0:
        raise OSError(ctypes.get_errno(), 'renameat2')


def described(path):
    attr = os.lstat(path)
    return (oct(attr.st_mode), attr.st_uid, attr.st_gid, attr.st_nlink, attr.st_size if stat.S_ISREG(attr.st_mode) else 0)


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
    return described(path)


class Semantics(unittest.TestCase):
    options = ()

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
        self.assertEqual(results[0], results[1])
        return results[1]

    def test_what_a_caller_makes_belongs_to_it(self):
        for kind, mode, group, umask in itertools.product(('file', 'directory', 'fifo', 'symlink'), (0o777, 0o2777, 0o1777),
                                                          (0, GROUP, OTHER_GROUP), (0o022, 0)):
            with self.subTest(kind=kind, mode=oct(mode), group=group, umask=oct(umask)):
                def prepare(directory):
                    os.chown(directory, 0, group)
                    os.chmod(directory, mode)

                def work(directory):
                    old = os.umask(umask)
                    try:
                        return (as_user(USER, GROUP, [OTHER_GROUP], lambda: make(directory, kind, 'x')), make(directory, kind, 'y'))
                    finally:
                        os.umask(old)
                self.same(work, prepare)

    def test_permissions_are_those_of_the_caller(self):
        for mode, owner in itertools.product((0o000, 0o400, 0o040, 0o004, 0o200, 0o600, 0o777), (USER, 99)):
            with self.subTest(mode=oct(mode), owner=owner):
                def work(directory):
                    path = directory + '/f'
                    with open(path, 'w') as file:
                        file.write('text')
                    os.chown(path, owner, OTHER_GROUP)
                    os.chmod(path, mode)
                    actions = [lambda: open(path).read(), lambda: open(path, 'r+').close(), lambda: os.truncate(path, 1),
                               lambda: os.chmod(path, 0o6755), lambda: os.chown(path, -1, OTHER_GROUP), lambda: os.utime(path),
                               lambda: os.utime(path, (1, 1)), lambda: os.setxattr(path, 'user.a', b'b'), lambda: os.unlink(path)]
                    return [(as_user(USER, GROUP, groups, action), described(path) if os.path.lexists(path) else None)
                            for groups in ([], [OTHER_GROUP]) for action in actions]
                self.same(work)

    def test_sticky_directories_protect_what_others_own(self):
        def work(directory):
            os.chmod(directory, 0o1777)
            for name, owner in (('mine', USER), ('theirs', 99)):
                open(f'{directory}/{name}', 'w').close()
                os.chown(f'{directory}/{name}', owner, owner)
            return [as_user(USER, GROUP, [], lambda n=name: os.rename(f'{directory}/{n}', f'{directory}/{n}2')) for name in ('mine', 'theirs')] + \
                   [as_user(USER, GROUP, [], lambda n=name: os.unlink(f'{directory}/{n}')) for name in ('mine2', 'theirs')]
        self.same(work)

    def test_writing_clears_setuid_and_setgid(self):
        def write(path):
            with open(path, 'r+') as file:
                file.write('x')

        for mode, action in itertools.product((0o6777, 0o2767, 0o4777), (
                write, lambda path: os.truncate(path, 1), lambda path: open(path, 'w').close(),
                lambda path: os.ftruncate(os.open(path, os.O_RDWR), 2), lambda path: os.posix_fallocate(os.open(path, os.O_RDWR), 0, 8))):
            with self.subTest(mode=oct(mode)):
                def work(directory):
                    path = directory + '/f'
                    with open(path, 'w') as file:
                        file.write('text')
                    os.chmod(path, mode)
                    outcome = as_user(USER, GROUP, [], lambda: action(path))
                    return outcome, described(path)
                self.same(work)

    def test_chown_clears_setuid(self):
        def work(directory):
            path = directory + '/f'
            open(path, 'w').close()
            os.chmod(path, 0o6755)
            os.chown(path, USER, GROUP)
            return described(path)
        self.same(work)

    def test_rename_flags(self):
        def work(directory):
            for name in 'abc':
                with open(f'{directory}/{name}', 'w') as file:
                    file.write(name)
            os.mkdir(directory + '/d')
            outcome = [attempt(lambda: renameat2(f'{directory}/a', f'{directory}/b', RENAME_NOREPLACE)),
                       attempt(lambda: renameat2(f'{directory}/a', f'{directory}/new', RENAME_NOREPLACE)),
                       attempt(lambda: renameat2(f'{directory}/b', f'{directory}/c', RENAME_EXCHANGE)),
                       attempt(lambda: renameat2(f'{directory}/b', f'{directory}/d', RENAME_EXCHANGE)),
                       attempt(lambda: os.rename(f'{directory}/c', f'{directory}/b')),
                       attempt(lambda: os.rename(f'{directory}/c', f'{directory}/new'))]
            return outcome, sorted(os.listdir(directory)), open(directory + '/new').read()
        self.same(work)

    def test_an_unlinked_file_lives_until_it_is_closed(self):
        def work(directory):
            path = directory + '/f'
            with open(path, 'w+') as file:
                file.write('before')
                file.flush()
                os.unlink(path)
                os.fchmod(file.fileno(), 0o640)
                file.write('after')
                file.flush()
                file.seek(0)
                attr = os.fstat(file.fileno())
                return file.read(), attr.st_nlink, oct(attr.st_mode), attr.st_size
        self.same(work)

    def test_a_file_renamed_over_stays_readable_for_who_has_it_open(self):
        def work(directory):
            for name in 'ab':
                with open(f'{directory}/{name}', 'w') as file:
                    file.write(name)
            with open(directory + '/b') as held:
                os.rename(directory + '/a', directory + '/b')
                return held.read(), open(directory + '/b').read(), os.fstat(held.fileno()).st_nlink
        self.same(work)

    def test_names_too_long_and_loops(self):
        def work(directory):
            os.symlink('loop', directory + '/loop')
            return [attempt(lambda: open(directory + '/' + 'n' * 256)), attempt(lambda: open(directory + '/loop')),
                    attempt(lambda: os.mkdir(directory + '/' + 'n' * 255)), attempt(lambda: open(directory + '/none/x')),
                    attempt(lambda: os.rmdir(directory)), attempt(lambda: open(directory)) == 'EISDIR']
        self.same(work)

    def test_append_writes_at_the_end_whoever_writes(self):
        def work(directory):
            path = directory + '/f'
            one, two = (os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) for _ in range(2))
            for i in range(20):
                os.write(one, b'1')
                os.write(two, b'2')
            return open(path).read()
        self.same(work)

    def test_holes_and_allocation(self):
        def work(directory):
            fd = os.open(directory + '/f', os.O_RDWR | os.O_CREAT)
            os.pwrite(fd, b'data', 1 << 20)
            os.posix_fallocate(fd, 2 << 20, 4096)
            found = [os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 1 << 20, os.SEEK_HOLE), os.fstat(fd).st_size]
            source = os.open(directory + '/g', os.O_RDWR | os.O_CREAT)
            os.write(source, b'copied')
            os.copy_file_range(source, fd, 6, 0, 100)
            os.lseek(fd, 0, 0)
            return found, os.pread(fd, 6, 100)
        self.same(work)

    def test_a_file_without_a_name_can_get_one(self):
        def work(directory):
            fd = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o640)
            os.write(fd, b'text')
            if LIBC.linkat(-100, f'/proc/self/fd/{fd}'.encode(), -100, (directory + '/named').encode(), 0x400) != 0:
                raise OSError(ctypes.get_errno(), 'linkat')
            return described(directory + '/named'), open(directory + '/named').read()
        self.same(work)

    def test_shared_mappings_and_reads_see_each_other(self):
        import mmap

        def work(directory):
            with open(directory + '/f', 'w+b') as file:
                file.write(b'a' * 8192)
                file.flush()
                one = mmap.mmap(file.fileno(), 8192)
                one[0:5] = b'first'
                seen = os.pread(file.fileno(), 5, 0)
                os.pwrite(file.fileno(), b'second', 4096)
                return seen, one[4096:4102]
        self.same(work)

    def test_locks_exclude(self):
        def work(directory):
            path = directory + '/f'
            open(path, 'w').close()
            first = open(path, 'r+')
            outcome = []
            for lock in (fcntl.flock, fcntl.lockf):
                lock(first, fcntl.LOCK_EX)
                outcome.append(as_user(0, 0, [], lambda: lock(open(path, 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)))
                lock(first, fcntl.LOCK_UN)
                outcome.append(as_user(0, 0, [], lambda: lock(open(path, 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)))
            return outcome
        self.same(work)

    def test_default_acls_are_inherited(self):
        import subprocess

        def work(directory):
            subprocess.run(['setfacl', '-d', '-m', 'u:7:rwx,g::rx,o::-', directory], check=True)
            open(directory + '/f', 'w').close()
            os.mkdir(directory + '/d')
            listing = subprocess.run(['getfacl', '-np', '--omit-header', directory + '/f', directory + '/d'], check=True,
                                     stdout=subprocess.PIPE).stdout
            return listing.replace(directory.encode(), b'')
        self.same(work)

    def test_a_directory_can_be_read_while_it_changes(self):
        def work(directory):
            for i in range(500):
                open(f'{directory}/f{i}', 'w').close()
            seen = set()
            with os.scandir(directory) as entries:
                for number, entry in enumerate(entries):
                    seen.add(entry.name)
                    if number == 100:
                        for i in range(500, 520):
                            open(f'{directory}/f{i}', 'w').close()
            return {f'f{i}' for i in range(500)} <= seen
        self.assertTrue(self.same(work))

    def test_changes_below_show_after_the_timeout(self):
        directory, below = self.mount.path + '/below', self.mount.backing + '/below'
        os.mkdir(below)
        self.assertEqual([], os.listdir(directory))
        with open(below + '/f', 'w') as file:
            file.write('one')
        time.sleep(1.1)
        self.assertEqual(['f'], os.listdir(directory))
        self.assertEqual('one', open(directory + '/f').read())
        with open(below + '/f', 'w') as file:
            file.write('longer')
        self.assertEqual('longer', open(directory + '/f').read())
        time.sleep(1.1)
        self.assertEqual(6, os.stat(directory + '/f').st_size)

    def test_a_thousand_files_can_be_open_at_once(self):
        directory = self.mount.path + '/many'
        os.mkdir(directory)
        files = [open(f'{directory}/{i}', 'w+') for i in range(900)]
        for number, file in enumerate(files):
            file.write(str(number))
            file.flush()
        for number, file in enumerate(files):
            self.assertEqual(str(number), os.pread(file.fileno(), 10, 0).decode())
            file.close()

    def test_threads_and_renames(self):
        directory = self.mount.path + '/race'
        os.mkdir(directory)
        open(directory + '/a', 'w').close()
        failures = []

        def rename():
            for _ in range(300):
                try:
                    os.rename(directory + '/a', directory + '/b')
                    os.rename(directory + '/b', directory + '/a')
                except OSError as error:
                    failures.append(error)

        def look():
            for _ in range(600):
                try:
                    open(directory + '/a').close()
                except FileNotFoundError:
                    pass
                except OSError as error:
                    failures.append(error)
        threads = [threading.Thread(target=work) for work in (rename, look, look, look)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([], failures)


class SemanticsWithoutPassthrough(Semantics):
    options = ('--no-passthrough',)


if __name__ == '__main__':
    unittest.main(verbosity=2)
