"""A mount for a test: its directories, its daemon, and its end, also when the test fails.

A test program ends with run_tests(); what cannot be tried on this machine is skipped by skip_all(), by unittest's own skips,
or, for a part of a test, by skip_part(). Each prints a line "skipped: ...", which scripts/test counts and lists.
"""
import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import shutil
import struct
import socket
import stat
import subprocess
import sys
import tempfile
import time
import unittest

SKIPPED = 77  # exit status: ctest counts it as "Skipped"
CAP_SYS_ADMIN = 21
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000



def others_may_enter(directory):
    """Whether plain users get to what lies in it."""
    while os.stat(directory).st_mode & stat.S_IXOTH:
        if directory == '/':
            return True
        directory = os.path.dirname(directory)
    return False


def scratch_place():
    """TMPDIR; another place where it is closed to the plain users who call what tests make there, or has blanks, which no LD_PRELOAD may have."""
    first = os.path.realpath(tempfile.gettempdir())
    return next((place for place in (first, '/var/tmp', '/tmp') if os.path.isdir(place) and ' ' not in place and others_may_enter(place)), first)


# What a test sees must not depend on who started it: files have the modes that are asked for, messages are in English, and
# scratch files are where every caller gets.
os.umask(0o022)
os.environ['LC_ALL'] = 'C.UTF-8'
if os.geteuid() == 0:
    tempfile.tempdir = os.environ['TMPDIR'] = scratch_place()

IMAFS = os.path.abspath(os.environ.get('IMAFS', 'build/release/imafs'))


def skip_part(what, reason):
    """A part of a test is not tried: said, and counted at the end of scripts/test."""
    print(f'skipped: {what}: {reason}', flush=True)


def skip_all(reason):
    """Nothing of this test program can be tried here: ends it."""
    print(f'skipped: {reason}', flush=True)
    sys.exit(SKIPPED)


def may_mount():
    """Why this process cannot mount; empty if it can."""
    if os.geteuid() != 0:
        return 'needs root'
    with open('/proc/self/status') as status:
        if not int(status.read().split('CapEff:')[1].split()[0], 16) >> CAP_SYS_ADMIN & 1:
            return 'root may not mount here (no CAP_SYS_ADMIN)'
    try:
        os.close(os.open('/dev/fuse', os.O_RDWR))
    except OSError as error:
        return f'/dev/fuse: {error.strerror}'
    return ''


def need_mounts():
    """For a test program on real mounts: skips all of it where root is needed and missing, or may not mount."""
    reason = may_mount()
    if reason:
        skip_all(reason)


def loop_devices_refused():
    """Why no image can be mounted; empty if it can."""
    try:
        os.close(os.open('/dev/loop-control', os.O_RDWR))
    except OSError as error:
        return f'no loop devices: {error.strerror}'
    return ''


def need_loop_devices():
    reason = loop_devices_refused()
    if reason:
        skip_all(reason)


def private_mounts_refused():
    """Why a process cannot have mounts of its own, as `imafs run` and bwrap need; empty if it can. In a chroot / is no mount, so nothing
    can be kept from the machine's mounts, nor can the root be changed."""
    pid = os.fork()
    if pid == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        made = libc.unshare(CLONE_NEWNS) == 0 and libc.mount(None, b'/', None, MS_REC | MS_PRIVATE, None) == 0
        os._exit(0 if made else ctypes.get_errno())
    error = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not error:
        return ''
    reasons = [f'private mounts are refused here: {os.strerror(error)}' + (' (/ is no mount point: a chroot)' if error == errno.EINVAL else '')]
    return '; '.join(reason for reason in (*reasons, user_namespaces_refused()) if reason)


def need_private_mounts():
    reason = private_mounts_refused()
    if reason:
        skip_all(reason)


def in_private_mounts():
    """Starts this test program again in a mount namespace of its own, if it is not there yet."""
    need_mounts()
    need_private_mounts()
    if os.environ.get('IMAFS_PRIVATE_MOUNTS') != sys.argv[0]:
        os.environ['IMAFS_PRIVATE_MOUNTS'] = sys.argv[0]
        os.execvp('unshare', ['unshare', '--mount', '--propagation', 'private', sys.executable, *sys.argv])


def need_programs(*names):
    missing = [name for name in names if not shutil.which(name)]
    if missing:
        skip_all('not installed: ' + ' '.join(missing))


def user_namespaces_refused():
    """Why the kernel gives no user namespace (in a chroot, in many containers); empty if it does."""
    pid = os.fork()
    if pid == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        os._exit(0 if libc.unshare(CLONE_NEWUSER) == 0 else ctypes.get_errno())
    error = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return 'user namespaces are refused here: ' + os.strerror(error) if error else ''


def run_tests(needs_mounts=True):
    """unittest.main() for a test program: says what was skipped, ends with SKIPPED if that was everything."""
    if needs_mounts:
        need_mounts()
    result = unittest.main(module='__main__', verbosity=2, exit=False).result
    sys.stderr.flush()
    for test, reason in result.skipped:
        skip_part(getattr(test, '_testMethodName', str(test)), reason)
    if not result.wasSuccessful():
        sys.exit(1)
    sys.exit(SKIPPED if result.testsRun and len(result.skipped) == result.testsRun else 0)


def free_ports(count):
    """The first of so many TCP ports in a row that nobody listens on. Below those that the kernel gives to clients."""
    for first in range(20000 + os.getpid() % 1000 * 8, 32000 - count):
        with contextlib.ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.socket()).bind(('127.0.0.1', port))
            except OSError:
                continue
            return first
    raise AssertionError('no TCP port is free')


def program_for_users(directory):
    """A copy of imafs in `directory` that a plain user can run: the checkout may be where only root gets."""
    copy = directory + '/imafs'
    if not os.path.exists(copy):
        shutil.copy(IMAFS, copy)
        os.chmod(copy, 0o755)
    return copy


def write_binary_log(path, count):
    """A log of ima-ng entries, sha1 records as the kernel writes them."""
    with open(path, 'wb') as log:
        for i in range(count):
            name = b'/usr/lib/package-%03d/part-%02d/file-%06d.so\0' % (i % 500, i % 37, i)
            digest = b'sha256:\0' + hashlib.sha256(name).digest()
            data = struct.pack('<I', len(digest)) + digest + struct.pack('<I', len(name)) + name
            log.write(struct.pack('<I', 10) + hashlib.sha1(data).digest() + struct.pack('<I', 6) + b'ima-ng' + struct.pack('<I', len(data)) + data)


@contextlib.contextmanager
def known(path):
    """The kernel keeps the inode, whoever drops caches meanwhile: imafs forgets with the kernel what is measured."""
    descriptor = os.open(path, os.O_PATH)
    try:
        yield
    finally:
        os.close(descriptor)


def seen_within(question, want, seconds):
    """What `question` answers once it answers `want`, or after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        got = question()
        if got == want or time.monotonic() > end:
            return got
        time.sleep(0.01)


FUSE_GETATTR, FUSE_RELEASE = 3, 18


@contextlib.contextmanager
def late(opcode, milliseconds):
    """A prefix for Mount: its daemon sees each FUSE request of one kind so much later."""
    with tempfile.TemporaryDirectory() as directory:
        library = directory + '/late_request.so'
        source = os.path.dirname(os.path.abspath(__file__)) + '/late_request.cpp'
        subprocess.run(['c++', '-shared', '-fPIC', '-o', library, source], check=True)
        yield ['env', 'LD_PRELOAD=' + library, f'LATE_OPCODE={opcode}', f'LATE_MS={milliseconds}',
               'ASAN_OPTIONS=verify_asan_link_order=0:' + os.environ.get('ASAN_OPTIONS', '')]


@contextlib.contextmanager
def ahead_of_others():
    """What is started meanwhile need not wait for the processor, where that can be had: its times say something on a busy machine, too."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, 0)


class Mount:
    def __init__(self, *options, backing=None, work=None, user=None, prefix=()):
        self.work = work or tempfile.mkdtemp(prefix='imafs-e2e-')
        self.owns_work = work is None
        self.backing = backing or os.path.join(self.work, 'tree')
        self.path = os.path.join(self.work, 'mount')
        self.state = os.path.join(self.work, 'state')
        self.messages = os.path.join(self.work, 'messages')
        self.options = list(options)
        self.user = user
        self.prefix = list(prefix)
        if user:
            os.chmod(self.work, 0o777)
        self.program = program_for_users(self.work) if user else IMAFS
        for directory in (self.backing, self.path):
            os.makedirs(directory, exist_ok=True)
        if user:
            for directory in (self.path, self.backing):
                shutil.chown(directory, user)

    def command(self):
        return [self.program, self.path, '--backing', self.backing, '--state', self.state, '--log-file', self.messages, *self.options]

    def start(self, check=True):
        words = self.command()
        if self.user:
            words = ['env', 'XDG_RUNTIME_DIR=' + self.work, 'setpriv', '--reuid', self.user, '--regid', 'nogroup', '--clear-groups', '--', *words]
        done = subprocess.run(self.prefix + words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
        if check and done.returncode != 0:
            raise AssertionError(f'imafs ended with {done.returncode}: {done.stderr}')
        return done

    def daemon_pid(self):
        """The process that serves the mount: the one with the lock on the state directory."""
        with open(self.state + '/lock') as lock:
            return int(lock.read())

    def swtpm_pid(self):
        with open(self.state + '/tpm/pid') as file:
            return int(file.read())

    def control(self, name):
        with open(f'{self.path}/.ima/{name}', 'rb') as file:
            return file.read()

    def log(self):
        """Lines of the log after boot_aggregate and imafs's own entries: (file digest, name)."""
        lines = [line.split(b' ') for line in self.control('measurements').split(b'\n') if line]
        return [(words[3], words[4]) for words in lines if words[2] == b'ima-ng' and words[4] != b'boot_aggregate']

    def names(self):
        return [name.decode() for digest, name in self.log()]

    def status(self):
        return json.loads(self.control('status'))

    def settle(self):
        """Waits until the daemon knows that no file is open: close(2) does not wait for its RELEASE."""
        for _ in range(1000):
            if self.status()['counters']['imafs_open_files'] == 0:
                return
            time.sleep(0.005)
        raise AssertionError('files stay open')

    def verify(self, *words):
        return subprocess.run([IMAFS, 'verify', self.path, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120)

    def stop(self):
        for _ in range(40):
            done = subprocess.run(['umount', self.path], stderr=subprocess.PIPE, text=True)
            if done.returncode == 0 or 'not mounted' in done.stderr:
                break
            time.sleep(0.05)
        else:
            subprocess.run(['umount', '-l', self.path], stderr=subprocess.DEVNULL)  # a test left files open
            return
        self.wait_for_end()

    def wait_for_end(self):
        """The daemon outlives umount(8) by a moment."""
        try:
            pid = self.daemon_pid()
        except (OSError, ValueError):
            return
        for _ in range(200):
            try:
                with open(f'/proc/{pid}/stat') as stat:
                    # The first thread can be a zombie while the others still hold what is open.
                    if stat.read().split(') ')[1].startswith('Z') and len(os.listdir(f'/proc/{pid}/task')) == 1:
                        return
            except OSError:
                return
            time.sleep(0.02)

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.stop()
        # A swtpm whose daemon was killed is ours to end, and so is what a test mounted below.
        for pid_file in glob.glob(self.work + '/*/tpm/pid'):
            try:
                with open(pid_file) as file:
                    pid = int(file.read())
                with open(f'/proc/{pid}/cmdline', 'rb') as command:
                    if os.path.dirname(pid_file).encode() in command.read():
                        os.kill(pid, 15)
            except (OSError, ValueError):
                pass
        for directory in (self.backing, self.state):
            if os.path.ismount(directory) and directory.startswith(self.work):
                subprocess.run(['umount', '-l', directory])
        if self.owns_work:
            shutil.rmtree(self.work, ignore_errors=True)
