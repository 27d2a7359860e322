"""Carries out the operations of a captured scenario and writes down what happened, in the form of its transcript.

One operation a line; words may be quoted, with \\n, \\t and \\xHH. After each operation follow the lines
that the measurement log gained, and the change of the violation counter.
"""
import ctypes
import errno
import os
import subprocess

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
MAP_FAILED = ctypes.c_void_p(-1).value
SHOWN_WIDTH = 300
BLOCK = 65536


def words_of(line):
    """Splits a line into words of bytes."""
    words, word, quoted, started, i = [], bytearray(), False, False, 0
    while i < len(line):
        c = line[i:i + 1]
        if c == b'"':
            quoted, started = not quoted, True
        elif c == b'\\' and i + 1 < len(line):
            i += 1
            c = line[i:i + 1]
            if c == b'n':
                word += b'\n'
            elif c == b't':
                word += b'\t'
            elif c == b'x':
                word.append(int(line[i + 1:i + 3], 16))
                i += 2
            else:
                word += c
            started = True
        elif c.isspace() and not quoted:
            if started:
                words.append(bytes(word))
            word, started = bytearray(), False
        else:
            word += c
            started = True
        i += 1
    if started:
        words.append(bytes(word))
    return words


def flags_of(text):
    return sum(3 if name == '3' else getattr(os, name) for name in text.decode().split('|'))


def noise(size, seed):
    """Reproducible bytes: the top byte of each state of a 32-bit linear congruential generator."""
    out = bytearray(size)
    for i in range(size):
        seed = (seed * 1664525 + 1013904223) & 0xffffffff
        out[i] = seed >> 24
    return bytes(out)


class Slot:
    def __init__(self):
        self.fd, self.map, self.size = -1, None, 0


class Interpreter:
    def __init__(self, root, control, out, rewrite, settle):
        """`rewrite` maps the paths of the scenario (bytes) to those of this machine; `settle` returns when the mount
        has done what it was asked."""
        self.root, self.control, self.out, self.rewrite, self.settle = root, control, out, rewrite, settle
        self.slots = {}
        self.watching = True
        self.seen, self.violations = 0, 0
        self.report(quiet=True)

    def say(self, text):
        self.out.write(text if isinstance(text, bytes) else text.encode())
        self.out.flush()

    def result(self, value):
        if isinstance(value, OSError):
            self.say(f' = -1 {errno.errorcode[value.errno]}({value.errno})\n')
        else:
            self.say(f' = {value}\n')

    def report(self, quiet=False):
        if not self.watching:
            return
        try:
            with open(self.control + '/ascii_runtime_measurements', 'rb') as log:
                text = log.read()
            with open(self.control + '/violations', 'rb') as counter:
                violations = int(counter.read())
        except OSError:
            return
        if not quiet:
            for line in text[self.seen:].split(b'\n'):
                if line:
                    self.say(b'    + ' + line + b'\n')
            if violations != self.violations:
                self.say(f'    violations {self.violations} -> {violations}\n')
        self.seen, self.violations = len(text), violations

    def path(self, word):
        if word.startswith(b'/'):
            return self.rewrite(word)
        if word.startswith(b'./'):
            return word
        return self.root.encode() + b'/' + word

    def data(self, word):
        if word.startswith(b'@'):
            try:
                with open(self.rewrite(word[1:]), 'rb') as source:
                    return source.read()
            except OSError:
                self.say(b' (no file ' + word[1:] + b')')
                return b''
        if word.startswith(b'hex:'):
            return bytes.fromhex(word[4:].decode())
        if word.startswith(b'rep:'):
            return word[4:5] * int(word[6:], 0)
        return self.rewrite(word) if word.startswith(b'/') else word

    def run(self, ops):
        with open(ops, 'rb') as lines:
            for number, line in enumerate(lines, 1):
                line = line.strip(b' \t\n')
                if not line:
                    continue
                if line.startswith(b'#'):
                    self.say(line + b'\n')
                    continue
                shown = line[:SHOWN_WIDTH] + (b'...' if len(line) > SHOWN_WIDTH else b'')
                self.say(b'%3d: %s' % (number, shown))
                self.step(words_of(line))
                self.settle()
                self.report()
        self.close_all()

    def close_all(self):
        for slot in self.slots.values():
            if slot.map is not None:
                LIBC.munmap(slot.map, slot.size)
            if slot.fd >= 0:
                os.close(slot.fd)
        self.slots.clear()

    def step(self, words):
        try:
            value = getattr(self, 'do_' + words[0].decode())(*words[1:])
        except OSError as error:
            value = error
        if value is not None:
            self.result(value)

    # Operations: they return a number, raise OSError, or (None) have said all themselves.

    def do_mark(self, *_):
        self.say('\n')

    def do_watch(self, word):
        self.watching = word == b'on'
        self.say('\n')

    def do_dropcaches(self):
        # Of this mount alone: other tests run beside, and count on what the kernel knows.
        os.sync()
        subprocess.run(['mount', '-i', '-o', 'remount', self.root], check=True)
        return 1

    def do_sh(self, command):
        self.say('\n')
        done = subprocess.run(['sh', '-c', self.rewrite(command)], stdout=self.out, stderr=self.out)
        self.say('    exit')
        return done.returncode

    def do_open(self, name, path, flags, mode=b'644'):
        slot = Slot()
        slot.fd = os.open(self.path(path), flags_of(flags), int(mode, 8))
        self.slots[name] = slot
        return 0

    def do_reopen(self, name, new_name, flags):
        slot = Slot()
        slot.fd = os.open(f'/proc/self/fd/{self.slots[name].fd}', flags_of(flags))
        self.slots[new_name] = slot
        return 0

    def do_chdir(self, path):
        os.chdir(self.path(path))
        return 0

    def do_bind(self, source, target):
        if LIBC.mount(self.path(source), self.path(target), None, 4096, None) != 0:
            raise OSError(ctypes.get_errno(), 'mount')
        return 0

    def do_umount(self, path):
        if LIBC.umount(self.path(path)) != 0:
            raise OSError(ctypes.get_errno(), 'umount')
        return 0

    def do_read(self, name, size=None):
        fd = self.slots[name].fd
        if size is None:
            return self.read_all(fd)
        memory = ctypes.create_string_buffer(int(size, 0) + 4096)
        aligned = (ctypes.addressof(memory) + 4095) & ~4095
        got = LIBC.read(fd, ctypes.c_void_p(aligned), int(size, 0))
        if got < 0:
            raise OSError(ctypes.get_errno(), 'read')
        return got

    @staticmethod
    def read_all(fd):
        total = 0
        while True:
            part = os.read(fd, BLOCK)
            if not part:
                return total
            total += len(part)

    def do_lseek(self, name, offset):
        return os.lseek(self.slots[name].fd, int(offset, 0), os.SEEK_SET)

    def do_write(self, name, text):
        given = self.data(text)
        written = os.write(self.slots[name].fd, given)
        # A path that stands elsewhere here has another length.
        return len(text) if text.startswith(b'/') and written == len(given) else written

    def do_pwrite(self, name, offset, text):
        return os.pwrite(self.slots[name].fd, self.data(text), int(offset, 0))

    def do_close(self, name):
        slot = self.slots[name]
        fd, slot.fd = slot.fd, -1
        if slot.map is None:
            del self.slots[name]
        os.close(fd)
        return 0

    def do_mmap(self, name, size, rights, kind):
        slot = self.slots[name]
        flags = 1 if kind == b'shared' else 2
        address = LIBC.mmap(None, int(size, 0), self.protection(rights), flags, slot.fd, 0)
        if address == MAP_FAILED:
            raise OSError(ctypes.get_errno(), 'mmap')
        slot.map, slot.size = address, int(size, 0)
        return 0

    @staticmethod
    def protection(rights):
        return sum(bit for letter, bit in ((b'r', 1), (b'w', 2), (b'x', 4)) if letter in rights)

    def do_mprotect(self, name, rights):
        slot = self.slots[name]
        if LIBC.mprotect(slot.map, slot.size, self.protection(rights)) != 0:
            raise OSError(ctypes.get_errno(), 'mprotect')
        return 0

    def do_poke(self, name, offset, text):
        ctypes.memmove(self.slots[name].map + int(offset, 0), text, len(text))
        return len(text)

    def do_munmap(self, name):
        slot = self.slots[name]
        LIBC.munmap(slot.map, slot.size)
        slot.map = None
        if slot.fd < 0:
            del self.slots[name]
        return 0

    def do_cat(self, path):
        fd = os.open(self.path(path), os.O_RDONLY)
        try:
            return self.read_all(fd)
        finally:
            os.close(fd)

    def do_show(self, path):
        fd = os.open(self.path(path), os.O_RDONLY)
        try:
            text = os.read(fd, 1 << 20)
            self.say(b'\n' + text + b'    ')
            return len(text)
        except OSError as error:
            self.say('\n    ')
            return error
        finally:
            os.close(fd)

    def write_file(self, path, text, flags):
        fd = os.open(self.path(path), os.O_WRONLY | os.O_CREAT | flags, 0o644)
        try:
            return os.write(fd, text)
        finally:
            os.close(fd)

    def do_put(self, path, text):
        return self.write_file(path, self.data(text), os.O_TRUNC)

    def do_append(self, path, text):
        return self.write_file(path, self.data(text), os.O_APPEND)

    def do_fill(self, path, size, seed):
        return self.write_file(path, noise(int(size, 0), int(seed, 0)), os.O_TRUNC)

    def do_mkdir(self, path, mode=b'755'):
        os.mkdir(self.path(path), int(mode, 8))
        return 0

    def do_unlink(self, path):
        os.unlink(self.path(path))
        return 0

    def do_rename(self, old, new):
        os.rename(self.path(old), self.path(new))
        return 0

    def do_link(self, old, new):
        os.link(self.path(old), self.path(new))
        return 0

    def do_symlink(self, target, path):
        os.symlink(target, self.path(path))
        return 0

    def do_truncate(self, path, size):
        os.truncate(self.path(path), int(size, 0))
        return 0

    def do_chmod(self, path, mode):
        os.chmod(self.path(path), int(mode, 8))
        return 0

    def do_chown(self, path, uid, gid):
        os.chown(self.path(path), int(uid), int(gid))
        return 0

    def do_touch(self, path):
        os.utime(self.path(path))
        return 0

    def do_setxattr(self, path, name, value):
        os.setxattr(self.path(path), name, self.data(value), follow_symlinks=False)
        return 0

    def do_removexattr(self, path, name):
        os.removexattr(self.path(path), name, follow_symlinks=False)
        return 0

    def do_getxattr(self, path, name):
        value = os.getxattr(self.path(path), name, follow_symlinks=False)
        self.say(f' [{value.hex()}]')
        return len(value)

    def do_stat(self, path):
        attr = os.lstat(self.path(path))
        self.say(f' [mode={attr.st_mode:o} uid={attr.st_uid} gid={attr.st_gid} size={attr.st_size} nlink={attr.st_nlink}]')
        return 0

    def do_exec(self, *arguments):
        self.say('\n')
        words = [self.path(arguments[0]), *arguments[1:]]
        try:
            done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=self.out, stderr=self.out)
        except OSError as error:
            self.say('    exec')
            return error
        self.say('    exec')
        if done.returncode < 0:
            self.say(f' signal {-done.returncode}\n')
            return None
        self.say(' exit')
        return done.returncode

    def do_as(self, uid, gid, euid, egid, *words):
        child = os.fork()
        if child == 0:
            os.setgroups([])
            os.setresgid(int(gid), int(egid), int(egid))
            os.setresuid(int(uid), int(euid), int(euid))
            self.step(words)
            os._exit(0)
        os.waitpid(child, 0)

    def do_verity(self, path, algorithm):
        request = bytearray(128)
        request[0:12] = (1).to_bytes(4, 'little') + int(algorithm).to_bytes(4, 'little') + (4096).to_bytes(4, 'little')
        return self.ioctl(path, 0x40806685, request)

    def do_veritydigest(self, path):
        answer = bytearray(68)
        answer[2] = 64
        self.ioctl(path, 0xc0046686, answer)
        size = answer[2]
        self.say(f' [{answer[0]}:{answer[4:4 + size].hex()}]')
        return 0

    def ioctl(self, path, command, memory):
        import fcntl
        fd = os.open(self.path(path), os.O_RDONLY)
        try:
            return fcntl.ioctl(fd, command, memory, True)
        finally:
            os.close(fd)

    def do_keyring(self, *_):
        self.say(' [keyring]')
        return 0

    def do_addkey(self, *_):
        return 0


