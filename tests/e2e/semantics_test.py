"""POSIX semantics of the mount, each compared with the same steps on the plain file system below it."""
import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import subprocess
import tempfile
import threading
import time
import unittest

from mounting import Mount, run_tests
from twins import (CALLERS, GROUP, LIBC, OTHER_GROUP, RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, STRANGER, USER, Twins, as_caller,
                   as_user, attempt, described, make, moved, remove, renameat2, seen)


class Semantics(Twins):
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
        for mode, owner, groups in itertools.product((0o000, 0o400, 0o040, 0o004, 0o200, 0o600, 0o777), (USER, 99), ([], [OTHER_GROUP])):
            with self.subTest(mode=oct(mode), owner=owner, groups=groups):
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
                            for action in actions]
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

    def test_a_chown_to_nobody_takes_setuid_only_from_who_may(self):
        def work(directory):
            outcome = []
            for kind, owner, mode in itertools.product(('file', 'directory', 'fifo'), (0, USER, STRANGER), (0o644, 0o6755, 0o2644, 0o4711)):
                for caller in CALLERS:
                    make(directory, kind, 'x')
                    path = directory + '/x'
                    os.chown(path, owner, GROUP)
                    os.chmod(path, mode)
                    result = moved(path, lambda: as_caller(caller, lambda: os.chown(path, -1, -1)))
                    outcome.append((kind, owner, oct(mode), caller, result, described(path)))
                    remove(path)
            return outcome
        self.same(work)

    def test_a_write_by_root_takes_capabilities_but_not_setuid(self):
        capability = bytes.fromhex('0100000200040000000000000000000000000000')

        def work(directory):
            path = directory + '/f'
            open(path, 'w').close()
            os.chmod(path, 0o4755)
            os.setxattr(path, 'security.capability', capability)
            with open(path, 'r+') as file:
                file.write('text')
            return described(path), attempt(lambda: os.getxattr(path, 'security.capability'))
        self.same(work)

    def test_what_chattr_protects(self):
        opens = {'write': os.O_WRONLY, 'both': os.O_RDWR, 'append': os.O_WRONLY | os.O_APPEND, 'create': os.O_WRONLY | os.O_CREAT,
                 'truncate': os.O_WRONLY | os.O_TRUNC, 'append, truncate': os.O_WRONLY | os.O_APPEND | os.O_TRUNC, 'read': os.O_RDONLY}

        def work(directory):
            path, outcome = directory + '/f', []
            for flag in 'ia':
                with open(path, 'w') as file:
                    file.write('text')
                outcome.append(subprocess.run(['chattr', '+' + flag, path, directory]).returncode)
                try:
                    for name, flags in opens.items():
                        outcome.append((flag, name, attempt(lambda: os.close(os.open(path, flags)))))
                    appending = attempt(lambda: os.open(path, os.O_WRONLY | os.O_APPEND))
                    if not isinstance(appending, str):
                        outcome.append((os.write(appending, b'more'), attempt(lambda: os.posix_fallocate(appending, 0, 100))))
                    calls = (lambda: os.truncate(path, 1), lambda: os.chmod(path, 0o600), lambda: os.rename(path, path + '2'), lambda: os.unlink(path),
                             lambda: os.link(path, path + '2'), lambda: os.utime(path, (1, 1)), lambda: os.mkdir(directory + '/d'))
                    outcome.append([attempt(call) for call in calls])
                finally:
                    subprocess.run(['chattr', '-' + flag, path, directory])
                outcome.append(described(path))
            return outcome
        self.same(work)

    def test_flags_of_chattr_show_and_move_the_ctime(self):
        def work(directory):
            path = directory + '/f'
            open(path, 'w').close()
            return [moved(path, lambda: subprocess.run(['chattr', change, path]).returncode) for change in ('+d', '-d', '+A')] + \
                subprocess.run(['lsattr', '-d', path], stdout=subprocess.PIPE, text=True).stdout.split()[:1]
        self.same(work)
        path = self.mount.path + '/generation'
        open(path, 'w').close()
        shown = subprocess.run(['lsattr', '-v', path], stdout=subprocess.PIPE, text=True).stdout.split()[:2]
        self.assertEqual(shown, subprocess.run(['lsattr', '-v', self.mount.backing + '/generation'], stdout=subprocess.PIPE, text=True).stdout.split()[:2])

    def test_a_whiteout_belongs_to_who_renames(self):
        def work(directory):
            os.chmod(directory, 0o1777)
            open(directory + '/a', 'w').close()
            os.chown(directory + '/a', USER, GROUP)
            return as_caller('user', lambda: renameat2(directory + '/a', directory + '/b', RENAME_WHITEOUT)), seen(directory + '/a'), seen(directory + '/b')
        self.same(work)

    def test_a_mapping_writes_where_it_is_though_opened_for_appending(self):
        def work(directory):
            fd = os.open(directory + '/f', os.O_RDWR | os.O_APPEND | os.O_CREAT)
            os.write(fd, b'0123456789')
            with mmap.mmap(fd, 10) as memory:
                memory[2:4] = b'--'
                memory.flush()
            os.fsync(fd)
            os.write(fd, b'end')
            os.pwrite(fd, b'!', 0)
            return os.pread(fd, 100, 0), os.fstat(fd).st_size
        self.same(work)

    def test_file_systems_in_the_tree_keep_their_files_apart(self):
        with tempfile.TemporaryDirectory(prefix='imafs-e2e-') as work:
            os.makedirs(work + '/tree/one')
            os.makedirs(work + '/tree/two')
            os.makedirs(work + '/tree/fixed')
            points = [work + '/tree/one', work + '/tree/two', work + '/tree/fixed']
            try:
                for point in points:
                    subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', point], check=True)
                    open(point + '/f', 'w').close()
                    os.link(point + '/f', point + '/g')
                subprocess.run(['mount', '-o', 'remount,ro', points[2]], check=True)
                with Mount(*self.options, backing=work + '/tree') as mount:
                    numbers = [[os.stat(f'{mount.path}/{name}/{file}').st_ino for file in 'fg'] for name in ('one', 'two', 'fixed')]
                    for one, other in numbers:
                        self.assertEqual(one, other)
                    self.assertEqual(3, len({one for one, _ in numbers}))
                    self.assertEqual(sorted(number for pair in numbers for number in pair),
                                     sorted(entry.inode() for name in ('one', 'two', 'fixed') for entry in os.scandir(f'{mount.path}/{name}')))
                    os.rename(mount.path + '/one/g', mount.path + '/one/h')
                    fixed = mount.path + '/fixed/f'
                    for flags in (os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_CREAT):
                        self.assertEqual('EROFS', attempt(lambda: os.open(fixed, flags)))
                    self.assertEqual(['EROFS'] * 3, [attempt(lambda: os.truncate(fixed, 0)), attempt(lambda: os.unlink(fixed)), attempt(lambda: os.utime(fixed))])
                    self.assertEqual('', open(fixed).read())
            finally:
                for point in points:
                    subprocess.run(['umount', point], stderr=subprocess.DEVNULL)

    def test_reads_move_the_access_time(self):
        def work(directory):
            path = directory + '/f'
            with open(path, 'w') as file:
                file.write('text')
            outcome = []
            for flags in (os.O_RDONLY | os.O_NOATIME, os.O_RDONLY):
                os.utime(path, (1, os.stat(path).st_mtime))
                fd = os.open(path, flags)
                outcome.append((os.stat(path).st_atime == 1, os.pread(fd, 10, 0), os.stat(path).st_atime == 1))
                os.close(fd)
            return outcome
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


class SmallFileSystem(unittest.TestCase):
    """A backing file system of its own, that can be full or read-only."""
    options = ('--tpm', 'none')
    SIZE = 4 << 20

    def setUp(self):
        work = tempfile.TemporaryDirectory(prefix='imafs-e2e-')
        self.addCleanup(work.cleanup)
        self.tree = work.name
        subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={self.SIZE}', 'tmpfs', self.tree], check=True)
        self.addCleanup(subprocess.run, ['umount', self.tree], stderr=subprocess.DEVNULL)

    def test_a_deleted_file_gives_its_room_back_at_once(self):
        def fill(path):
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
            try:
                os.posix_fallocate(fd, 0, self.SIZE - 65536)
                os.pwrite(fd, b'x' * 65536, self.SIZE - 65536)
            finally:
                os.close(fd)

        with Mount(*self.options, backing=self.tree) as mount:
            for _ in range(30):
                fill(mount.path + '/f')
                self.assertEqual('ENOSPC', attempt(lambda: fill(mount.path + '/g')))
                os.unlink(mount.path + '/g')
                with open(mount.path + '/f', 'rb') as file:  # idle files keep a descriptor
                    file.read(1)
                os.unlink(mount.path + '/f')

    def test_what_is_mounted_read_only_below_is_so_above(self):
        def outcomes(directory):
            path = directory + '/f'
            work = {'create': lambda: os.open(directory + '/new', os.O_CREAT | os.O_WRONLY), 'mkdir': lambda: os.mkdir(directory + '/new'),
                    'link': lambda: os.link(path, directory + '/new'), 'unlink': lambda: os.unlink(path), 'rename': lambda: os.rename(path, directory + '/new'),
                    'write': lambda: os.open(path, os.O_WRONLY), 'truncate': lambda: os.truncate(path, 0), 'chmod': lambda: os.chmod(path, 0o600),
                    'utime': lambda: os.utime(path), 'setxattr': lambda: os.setxattr(path, 'user.a', b'b'), 'access': lambda: os.access(path, os.W_OK),
                    'unlink nothing': lambda: os.unlink(directory + '/none'), 'stat': lambda: os.stat(path).st_size}
            return {(caller, name): as_caller(caller, one) for caller in ('root', 'user') for name, one in work.items()}

        with open(self.tree + '/f', 'w') as file:
            file.write('text')
        subprocess.run(['mount', '-o', 'remount,ro', self.tree], check=True)
        with Mount(*self.options, backing=self.tree) as mount:
            os.chmod(mount.work, 0o755)
            self.assertEqual(outcomes(self.tree), outcomes(mount.path))


class SmallFileSystemWithoutPassthrough(SmallFileSystem):
    options = ('--tpm', 'none', '--no-passthrough')


class SemanticsWithoutPassthrough(Semantics):
    options = ('--tpm', 'none', '--no-passthrough')

    def test_appending_can_be_ended(self):
        # In passthrough mode the kernel keeps the flag that the file was opened with.
        def work(directory):
            fd = os.open(directory + '/f', os.O_RDWR | os.O_APPEND | os.O_CREAT)
            os.write(fd, b'0123456789')
            fcntl.fcntl(fd, fcntl.F_SETFL, 0)
            os.pwrite(fd, b'--', 2)
            return os.pread(fd, 100, 0)
        self.same(work)


if __name__ == '__main__':
    run_tests()
