"""What belongs to a file beside its bytes: times, setuid, attributes, ACLs, locks, and listings, as on the plain tree."""
import ctypes
import fcntl
import itertools
import os
import signal
import struct
import subprocess
import sys

from mounting import run_tests
from twins import (CALLERS, GROUP, KINDS, LIBC, OTHER_GROUP, STRANGER, USER, Twins, as_caller, attempt, described, make, moved, opened, remove,
                   system)

AT_FDCWD = -100
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


def utimensat(path, times):
    return system('utimensat', AT_FDCWD, path.encode(), (ctypes.c_long * 4)(*times[0], *times[1]), 0x100)


class Attributes(Twins):
    def test_which_times_a_call_moves(self):
        def work(directory):
            path, inner, outcome = directory + '/f', directory + '/d', []
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            os.mkdir(inner)
            source = os.open(directory + '/source', os.O_RDWR | os.O_CREAT)
            os.write(source, b'source')

            def at(offset, length, mode):
                return system('fallocate', fd, mode, ctypes.c_long(offset), ctypes.c_long(length))
            steps = [(path, step) for step in (
                lambda: os.write(fd, b'text'), lambda: os.write(fd, b''), lambda: os.ftruncate(fd, 4), lambda: os.ftruncate(fd, 100),
                lambda: os.truncate(path, 100), lambda: os.truncate(path, 50), lambda: opened(path, os.O_WRONLY | os.O_TRUNC),
                lambda: opened(path, os.O_WRONLY | os.O_TRUNC), lambda: opened(path, os.O_WRONLY | os.O_CREAT), lambda: os.truncate(path, 0),
                lambda: at(0, 100, 0), lambda: at(0, 50, 0), lambda: at(0, 9000, 1), lambda: at(0, 5, 3), lambda: at(0, 5, 16),
                lambda: os.chmod(path, 0o600), lambda: os.chmod(path, 0o600), lambda: os.chown(path, 0, 0), lambda: os.fsync(fd),
                lambda: os.setxattr(path, 'user.a', b'1'), lambda: os.removexattr(path, 'user.a'), lambda: os.removexattr(path, 'user.a'),
                lambda: os.link(path, path + '2'), lambda: os.rename(path + '2', path + '3'), lambda: os.unlink(path + '3'),
                lambda: os.copy_file_range(source, fd, 3, 0, 0), lambda: os.rename(path, path), lambda: os.mkdir(path),
                lambda: os.symlink('a', path))]
            steps += [(inner, step) for step in (
                lambda: make(inner, 'file', 'x'), lambda: make(inner, 'directory', 'y'), lambda: os.mkdir(inner + '/y'),
                lambda: os.unlink(inner + '/x'), lambda: os.rmdir(inner + '/y'), lambda: make(inner, 'fifo', 'p'),
                lambda: os.rename(inner + '/p', inner + '/q'), lambda: os.link(path, inner + '/l'), lambda: os.unlink(inner + '/none'),
                lambda: os.rename(inner + '/q', directory + '/q'), lambda: opened(inner + '/l', os.O_CREAT | os.O_WRONLY))]
            for number, (watched, step) in enumerate(steps):
                result, times = moved(watched, step)
                outcome.append((number, result, times.replace('a', ''), moved(directory, lambda: None, 0)))
            return outcome
        self.same(work)

    def test_times_that_are_set(self):
        def work(directory):
            outcome = []
            edges = ((0, 0), (1, 999999999), (-1, -1), ((1 << 31) * 10**9, ((1 << 31) - 1) * 10**9), ((1 << 32) * 10**9 + 5, 3),
                     (15032385536 * 10**9, -(1 << 31) * 10**9))
            for kind, times in itertools.product(KINDS, edges):
                make(directory, kind, 'x')
                result = attempt(lambda: os.utime(directory + '/x', ns=times, follow_symlinks=False))
                attr = os.lstat(directory + '/x')
                outcome.append((kind, times, result, attr.st_atime_ns, attr.st_mtime_ns))
                remove(directory + '/x')
            path = directory + '/f'
            choices = ((5, 7), (0, UTIME_NOW), (0, UTIME_OMIT), (1, 1000000000))
            owners = ((USER, 0o444), (STRANGER, 0o666), (STRANGER, 0o644), (STRANGER, 0o664))
            for caller, (owner, mode), access, change in itertools.product(CALLERS, owners, choices, choices):
                make(directory, 'file', 'f')
                os.chown(path, owner, OTHER_GROUP)
                os.chmod(path, mode)
                utimensat(path, ((1, 1), (2, 2)))
                result = as_caller(caller, lambda: utimensat(path, (access, change)))
                attr = os.lstat(path)
                times = [ns if ns < 10**12 else 'now' for ns in (attr.st_atime_ns, attr.st_mtime_ns)]
                outcome.append((caller, owner, oct(mode), access, change, result, times))
                remove(path)
            return outcome
        self.same(work)

    def test_setuid_after_a_change(self):
        acts = {'write': lambda path: os.write(os.open(path, os.O_WRONLY), b'x'),
                'append': lambda path: os.write(os.open(path, os.O_WRONLY | os.O_APPEND), b'x'),
                'write nothing': lambda path: os.write(os.open(path, os.O_WRONLY), b''),
                'write twice': lambda path: [os.write(fd, b'x') + os.write(fd, b'y') for fd in (os.open(path, os.O_RDWR),)],
                'truncate': lambda path: os.truncate(path, 2), 'truncate open': lambda path: os.ftruncate(os.open(path, os.O_RDWR), 1),
                'open, truncate': lambda path: opened(path, os.O_WRONLY | os.O_TRUNC), 'open both': lambda path: opened(path, os.O_RDWR),
                'create': lambda path: opened(path, os.O_WRONLY | os.O_CREAT), 'utime': os.utime,
                'allocate': lambda path: os.posix_fallocate(os.open(path, os.O_RDWR), 0, 9),
                'link': lambda path: os.link(path, path + '2'),
                'punch': lambda path: system('fallocate', os.open(path, os.O_RDWR), 3, ctypes.c_long(0), ctypes.c_long(2)),
                'set an ACL': lambda path: subprocess.run(['setfacl', '-m', 'u:7:r', path], stderr=subprocess.DEVNULL).returncode}

        def work(directory):
            outcome = []
            for act, mode, owner, caller in itertools.product(acts, (0o6777, 0o2767, 0o4777), ((USER, GROUP), (STRANGER, OTHER_GROUP)), CALLERS):
                path = directory + '/f'
                with open(path, 'w') as file:
                    file.write('text')
                os.chown(path, *owner)
                os.chmod(path, mode)
                outcome.append((act, oct(mode), owner, caller, as_caller(caller, lambda: acts[act](path)), described(path)))
                for name in os.listdir(directory):
                    os.unlink(f'{directory}/{name}')
            return outcome
        self.same(work)

    def test_extended_attributes(self):
        names = ('user.a', 'trusted.a', 'security.a', 'system.a', 'a', 'user.', 'user.' + 'n' * 250, 'user.' + 'n' * 251,
                 'system.posix_acl_access', 'security.capability', '')

        def work(directory):
            outcome = []
            for kind, name, caller in itertools.product(KINDS, names, ('root', 'user')):
                make(directory, kind, 'x')
                path = directory + '/x'
                calls = (lambda: os.setxattr(path, name, b'v', follow_symlinks=False), lambda: os.getxattr(path, name, follow_symlinks=False),
                         lambda: sorted(os.listxattr(path, follow_symlinks=False)), lambda: os.removexattr(path, name, follow_symlinks=False))
                outcome.append((kind, name[:10], len(name), caller, as_caller(caller, lambda: [attempt(call) for call in calls])))
                remove(path)
            path = directory + '/f'
            open(path, 'w').close()
            for size in (0, 1, 2000, 4000, 5000, 65536, 65537):
                outcome.append((size, attempt(lambda: os.setxattr(path, 'user.big', b'x' * size)),
                                attempt(lambda: len(os.getxattr(path, 'user.big')))))
            os.setxattr(path, 'user.ten', b'0123456789')
            room = ctypes.create_string_buffer(70000)
            for size in (0, 1, 9, 10, 70000):
                for name in (b'user.ten', b'user.none'):
                    outcome.append(attempt(lambda: system('getxattr', path.encode(), name, room, ctypes.c_size_t(size))))
                outcome.append(attempt(lambda: system('listxattr', path.encode(), room, ctypes.c_size_t(size))))
            for flag, name in itertools.product((os.XATTR_CREATE, os.XATTR_REPLACE), ('user.ten', 'user.new')):
                outcome.append(attempt(lambda: os.setxattr(path, name, b'', flag)))
            return outcome
        self.same(work)

    def test_which_extended_attributes_a_caller_sees(self):
        def work(directory):
            path = directory + '/f'
            open(path, 'w').close()
            for name in ('trusted.first', 'user.x', 'security.z', 'trusted.last'):
                os.setxattr(path, name, b'v')
            room = ctypes.create_string_buffer(1000)
            return [(caller, as_caller(caller, lambda: sorted(os.listxattr(path))),
                     [as_caller(caller, lambda: system('listxattr', path.encode(), room, ctypes.c_size_t(size))) for size in (0, 5, 20, 1000)])
                    for caller in CALLERS]
        self.same(work)

    def test_root_without_the_capability_to_keep_setuid(self):
        acts = {'write': 'open(path, "r+").write("x")', 'truncate': 'os.truncate(path, 1)', 'allocate': 'os.posix_fallocate(os.open(path, os.O_RDWR), 0, 99)'}

        def work(directory):
            outcome = []
            for (act, text), mode in itertools.product(acts.items(), (0o6777, 0o2767, 0o4777)):
                path = directory + '/f'
                with open(path, 'w') as file:
                    file.write('text')
                os.chmod(path, mode)
                subprocess.run(['setpriv', '--bounding-set=-fsetid', '--inh-caps=-fsetid', sys.executable, '-c', f'import os; path = "{path}"; {text}'],
                               check=True)
                outcome.append((act, oct(mode), described(path)))
            return outcome
        self.same(work)

    def test_access_lists(self):
        def shown(path):
            return subprocess.run(['getfacl', '-cnp', path], stdout=subprocess.PIPE).stdout

        def work(directory):
            outcome, path = [], directory + '/f'
            rules = ('u:1234:rwx', 'g:3456:rwx,m::r', 'u:99:-')
            for rule, caller, mode in itertools.product(rules, ('root', 'user', 'stranger'), (0o640, 0o2750)):
                open(path, 'w').close()
                os.chown(path, USER, OTHER_GROUP)
                os.chmod(path, mode)
                result = as_caller(caller, lambda: subprocess.run(['setfacl', '-m', rule, path], stderr=subprocess.DEVNULL).returncode)
                outcome.append((rule, caller, oct(mode), result, shown(path), described(path)))
                outcome.append([as_caller(name, lambda: opened(path, os.O_RDWR)) for name in CALLERS])
                outcome.append((as_caller(caller, lambda: os.chmod(path, 0o2764)), shown(path)))
                os.unlink(path)
            rules = ('u:1234:rwx', 'u::rwx,g::r,o::-', 'g:3456:rwx,m::rx')
            for rule, umask, caller, mode in itertools.product(rules, (0, 0o077), ('root', 'user'), (0o777, 0o2777)):
                base = directory + '/base'
                os.mkdir(base)
                os.chmod(base, mode)
                subprocess.run(['setfacl', '-d', '-m', rule, base], check=True)
                old = os.umask(umask)
                result = as_caller(caller, lambda: [opened(base + '/f', os.O_CREAT | os.O_WRONLY), os.mkdir(base + '/d'),
                                                    os.mkfifo(base + '/p'), os.symlink('f', base + '/l')])
                os.umask(old)
                made = [(name, described(f'{base}/{name}')) for name in sorted(os.listdir(base))]
                outcome.append((rule, umask, caller, oct(mode), result, made, shown(base + '/f'), shown(base + '/d')))
                remove(base)
            return outcome
        self.same(work)

    def test_locks_of_processes(self):
        def lock(kind, start=0, length=0):
            return struct.pack('hhqqi4x', kind, 0, start, length, 0)

        def interrupted(wait):
            signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(InterruptedError(4, 'alarm')))
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            return wait()

        def work(directory):
            path = directory + '/f'
            open(path, 'w').close()
            held, outcome = os.open(path, os.O_RDWR), []
            fcntl.fcntl(held, fcntl.F_SETLK, lock(fcntl.F_WRLCK, 10, 10))

            def other(command, asked):
                def ask():
                    answer = fcntl.fcntl(os.open(path, os.O_RDWR), command, asked)
                    return struct.unpack('hhqq', answer[:24]) if command in (fcntl.F_GETLK, fcntl.F_OFD_GETLK) else 'had'
                return as_caller('root', ask)
            commands = (fcntl.F_GETLK, fcntl.F_SETLK, fcntl.F_OFD_GETLK, fcntl.F_OFD_SETLK)
            ranges = ((0, 0), (0, 10), (5, 6), (20, 1))
            for kind, (start, length), command in itertools.product((fcntl.F_RDLCK, fcntl.F_WRLCK), ranges, commands):
                outcome.append((kind, start, command, other(command, lock(kind, start, length))))
            whole = lock(fcntl.F_WRLCK)
            outcome.append(as_caller('root', lambda: interrupted(lambda: fcntl.fcntl(os.open(path, os.O_RDWR), fcntl.F_SETLKW, whole))))
            os.close(os.open(path, os.O_RDONLY))  # which ends the locks of this process
            outcome.append(other(fcntl.F_SETLK, whole))
            fcntl.flock(held, fcntl.LOCK_SH)
            for how in (fcntl.LOCK_SH, fcntl.LOCK_EX):
                outcome.append(as_caller('root', lambda: fcntl.flock(os.open(path, os.O_RDONLY), how | fcntl.LOCK_NB)))
            outcome.append(as_caller('root', lambda: interrupted(lambda: fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX))))
            return outcome
        self.same(work)

    def test_a_directory_is_told_from_the_start_and_from_the_middle(self):
        LIBC.opendir.restype = LIBC.readdir.restype = ctypes.c_void_p
        LIBC.telldir.restype = ctypes.c_long
        for call in (LIBC.readdir, LIBC.telldir, LIBC.closedir, LIBC.rewinddir):
            call.argtypes = [ctypes.c_void_p]
        LIBC.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]

        def work(directory):
            for number in range(2000):
                os.close(os.open(f'{directory}/{number:04}', os.O_CREAT))
            stream = LIBC.opendir(directory.encode())

            def following():
                entry = LIBC.readdir(stream)
                return entry and ctypes.string_at(entry + 19).decode()
            places, names = [], []
            while True:
                places.append(LIBC.telldir(stream))
                name = following()
                if not name:
                    break
                names.append(name)
            outcome = [len(names), len(set(names)), len(set(places))]
            for index in range(0, len(names), 37):
                LIBC.seekdir(stream, places[index])
                self.assertEqual(names[index], following())
            LIBC.rewinddir(stream)
            met = []
            while name := following():  # every second one goes away while we look
                met.append(name)
                if name.isdigit() and int(name) % 2:
                    os.unlink(f'{directory}/{name}')
            outcome += [len(met), len(set(met))]
            make(directory, 'file', 'new')
            LIBC.rewinddir(stream)
            met = []
            while name := following():
                met.append(name)
            LIBC.closedir(stream)
            return outcome + [len(met), 'new' in met, sorted(os.listdir(directory)) == sorted(set(met) - {'.', '..'})]
        self.same(work)

    def test_a_directory_that_is_removed_while_it_is_open(self):
        def work(directory):
            inner, outcome = directory + '/inner', []
            for listed_before in (False, True):
                os.mkdir(inner)
                make(inner, 'file', 'x')
                held = os.open(inner, os.O_RDONLY)
                if listed_before:
                    outcome.append(os.listdir(held))
                remove(inner)
                outcome += [attempt(lambda: os.listdir(held)), attempt(lambda: opened(f'/proc/self/fd/{held}/new', os.O_CREAT)), os.fstat(held).st_nlink]
                os.close(held)
            return outcome
        self.same(work)


class AttributesWithoutPassthrough(Attributes):
    options = ('--tpm', 'none', '--no-passthrough')


if __name__ == '__main__':
    run_tests()
