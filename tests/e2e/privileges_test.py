#!/usr/bin/env python3
"""What the daemon keeps of its caller's and of root's: descriptors, capabilities, system calls."""
import contextlib
import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

from mounting import IMAFS, Mount, need_mounts, seen_within

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.dirname(os.path.dirname(HERE))
SANITIZED = b'__asan_init' in open(IMAFS, 'rb').read() or b'__tsan_init' in open(IMAFS, 'rb').read()

# Number of each capability: include/uapi/linux/capability.h.
NUMBERS = {'CHOWN': 0, 'DAC_OVERRIDE': 1, 'DAC_READ_SEARCH': 2, 'FOWNER': 3, 'FSETID': 4, 'KILL': 5, 'SETGID': 6, 'SETUID': 7, 'SETPCAP': 8,
           'LINUX_IMMUTABLE': 9, 'SYS_PTRACE': 19, 'SYS_ADMIN': 21, 'SYS_RESOURCE': 24, 'MKNOD': 27, 'LEASE': 28, 'SETFCAP': 31}
FORBIDDEN = ['execve', 'execveat', 'fork', 'clone', 'ptrace', 'process_vm_writev', 'pidfd_getfd', 'mount', 'move_mount', 'pivot_root', 'chroot',
             'unshare', 'setns', 'setuid', 'setresgid', 'init_module', 'finit_module', 'kexec_load', 'reboot', 'swapon', 'bpf', 'perf_event_open',
             'userfaultfd', 'keyctl', 'io_uring_setup', 'memfd_create', 'listen', 'settimeofday', 'sethostname', 'mmap of memory to write and run',
             'prctl for core dumps', 'ioctl that types', 'a call of the x32 table']
if os.uname().machine != 'x86_64':
    FORBIDDEN = [call for call in FORBIDDEN if call not in ('fork', 'a call of the x32 table')]


def status_of(pid, thread=None):
    """{field: value} of /proc/PID/status, or of one of its threads."""
    with open(f'/proc/{pid}/task/{thread or pid}/status') as file:
        return dict(line.rstrip('\n').split(':\t', 1) for line in file if ':\t' in line)


def documented_capabilities():
    """Those of the table in docs/ARCHITECTURE.md, as a number with a bit each, reduced to what this process could hand on."""
    with open(SOURCE + '/docs/ARCHITECTURE.md') as file:
        names = re.findall(r'^\| CAP_(\w+) \|', file.read(), re.MULTILINE)
    return sum(1 << NUMBERS[name] for name in names) & int(status_of(os.getpid())['CapPrm'], 16)


def is_mounted(path):
    """Also if it is another user's mount, which root may not enter."""
    with open('/proc/self/mountinfo') as mounts:
        return any(line.split()[4] == path for line in mounts)


def children_of(pid):
    with open(f'/proc/{pid}/task/{pid}/children') as file:
        return [int(word) for word in file.read().split()]


@contextlib.contextmanager
def library(source):
    """The path of a library for LD_PRELOAD."""
    with tempfile.TemporaryDirectory() as directory:
        path = directory + '/preloaded.so'
        subprocess.run(['c++', '-shared', '-fPIC', '-o', path, f'{HERE}/{source}'], check=True)
        yield path


class Capabilities(unittest.TestCase):
    def test_every_thread_has_what_is_documented_and_no_more(self):
        wanted = documented_capabilities()
        self.assertGreater(wanted.bit_count(), 10)
        with Mount('--tpm', 'swtpm') as mount:
            with open(mount.path + '/f', 'w') as file:
                file.write('x' * 300000)
            with open(mount.path + '/f') as file:
                file.read()
            threads = os.listdir(f'/proc/{mount.daemon_pid()}/task')
            self.assertGreater(len(threads), 5)
            for thread in threads:
                with self.subTest(thread=thread):
                    about = status_of(mount.daemon_pid(), thread)
                    for field in ('CapPrm', 'CapBnd'):
                        self.assertEqual(f'{wanted:016x}', about[field], field)
                    # A thread that acts for a caller has less for that time.
                    self.assertEqual(0, int(about['CapEff'], 16) & ~wanted)
                    for field in ('CapInh', 'CapAmb'):
                        self.assertEqual(0, int(about[field], 16), field)
                    self.assertEqual('1', about['NoNewPrivs'])
                    if not SANITIZED:
                        self.assertEqual('2', about['Seccomp'])
                    self.assertEqual('', about['Groups'].strip())
            helpers = children_of(mount.daemon_pid())
            self.assertEqual(2, len(helpers))
            for pid in (*helpers, mount.swtpm_pid()):
                with self.subTest(process=status_of(pid)['Name']):
                    about = status_of(pid)
                    few = 1 << NUMBERS['DAC_OVERRIDE'] | 1 << NUMBERS['SYS_RESOURCE'] | 1 << NUMBERS['DAC_READ_SEARCH']
                    self.assertEqual(0, int(about['CapBnd'], 16) & ~few)
                    self.assertEqual(0, int(about['CapPrm'], 16) & ~few)
                    self.assertEqual('1', about['NoNewPrivs'])

    def test_the_same_user_cannot_look_inside(self):
        with Mount('--tpm', 'swtpm', user='nobody') as mount:
            look = f"import os\nfor name in 'mem', 'maps', 'environ':\n  try:\n    open('/proc/{mount.daemon_pid()}/' + name).read(1)\n    print(name)\n  except OSError: pass"
            seen = subprocess.run(['setpriv', '--reuid', 'nobody', '--regid', 'nogroup', '--clear-groups', sys.executable, '-c', look],
                                  stdout=subprocess.PIPE, text=True, check=True)
            self.assertEqual('', seen.stdout)
            about = status_of(mount.daemon_pid())
            self.assertEqual(0, int(about['CapPrm'], 16))
            self.assertEqual('1', about['NoNewPrivs'])

    def test_a_plain_user_s_daemon_unmounts_when_it_is_asked_to_end(self):
        with Mount('--tpm', 'swtpm', user='nobody') as mount:
            self.assertTrue(is_mounted(mount.path))
            os.kill(mount.daemon_pid(), signal.SIGTERM)
            mount.wait_for_end()
            self.assertFalse(seen_within(lambda: is_mounted(mount.path), False, 5))

    def test_a_swtpm_that_dies_is_started_again(self):
        with Mount('--tpm', 'swtpm') as mount:
            before = mount.swtpm_pid()
            os.kill(before, signal.SIGKILL)
            with open(mount.backing + '/f', 'w') as file:
                file.write('x')
            self.assertEqual('x', seen_within(lambda: subprocess.run(['cat', mount.path + '/f'], stdout=subprocess.PIPE, text=True).stdout, 'x', 20))
            self.assertNotEqual(before, mount.swtpm_pid())
            self.assertEqual(0, mount.verify().returncode)


class Descriptors(unittest.TestCase):
    def test_nothing_of_the_caller_stays_open(self):
        """Locks, pipes and sockets of whoever mounts, whatever their number, with and without CLOEXEC in the way."""
        for options in (['--tpm', 'swtpm'], ['--tpm', 'none'], ['--tpm', 'none', '--foreground']):
            with self.subTest(options=options), tempfile.NamedTemporaryFile() as lock:
                mount = Mount(*options)
                reader, writer = os.pipe()
                ours, theirs = socket.socketpair()
                high = fcntl.fcntl(writer, fcntl.F_DUPFD, 900)
                fcntl.flock(lock, fcntl.LOCK_EX)
                kept = [lock.fileno(), writer, theirs.fileno(), high]
                process = subprocess.Popen(mount.command(), pass_fds=kept, env={**os.environ, 'LISTEN_FDS': '1', 'LISTEN_PID': '1', 'SECRET': 'x'})
                try:
                    self.assertTrue(seen_within(lambda: os.path.exists(mount.path + '/.ima/status'), True, 20))
                    inodes = {os.readlink(f'/proc/self/fd/{fd}') for fd in kept}
                    left = []
                    for pid in self.processes_of(mount):
                        for fd in os.listdir(f'/proc/{pid}/fd'):
                            with contextlib.suppress(OSError):
                                if int(fd) > 2 and os.readlink(f'/proc/{pid}/fd/{fd}') in inodes:
                                    left.append((status_of(pid)['Name'], fd))
                    self.assertEqual([], left)
                    os.close(writer)
                    os.close(high)
                    os.set_blocking(reader, False)
                    self.assertEqual(b'', os.read(reader, 1))  # the end: nobody has it open for writing
                    if 'swtpm' in options:
                        with open(f'/proc/{mount.swtpm_pid()}/environ') as file:
                            names = {word.split('=')[0] for word in file.read().split('\0') if word}
                        self.assertLessEqual(names, {'PATH', 'LD_LIBRARY_PATH'})
                finally:
                    mount.stop()
                    process.wait(20)
                    mount.__exit__()
                    for fd in (reader, ours, theirs):
                        fd.close() if hasattr(fd, 'close') else os.close(fd)

    def processes_of(self, mount):
        pids = [mount.daemon_pid(), *children_of(mount.daemon_pid())]
        if os.path.exists(mount.state + '/tpm/pid'):
            pids.append(mount.swtpm_pid())
        return pids

    def test_without_standard_descriptors(self):
        """Files of ours never get the numbers 0 to 2, where a message could land in them."""
        mount = Mount('--tpm', 'none')
        try:
            command = ' '.join(f"'{word}'" for word in mount.command())
            subprocess.run(['sh', '-c', f'exec 0<&- 1>&- 2>&-; exec {command}'], timeout=60, check=True)
            for fd in range(3):
                self.assertEqual('/dev/null', os.readlink(f'/proc/{mount.daemon_pid()}/fd/{fd}'))
        finally:
            mount.__exit__()

    def test_rules_and_messages_may_come_and_go_through_a_descriptor(self):
        mount = Mount('--tpm', 'none')
        messages = mount.work + '/by-descriptor'
        try:
            command = mount.command()
            command[command.index('--log-file') + 1] = '/dev/fd/9'
            words = ' '.join(f"'{word}'" for word in command)
            subprocess.run(['bash', '-c', f"exec {words} --policy <(echo 'measure func=FILE_CHECK mask=MAY_READ uid=7') 9>>'{messages}'"], timeout=60, check=True)
            self.assertIn(b'uid=7', mount.control('policy'))
            with open(messages) as file:
                self.assertIn('a new log', file.read())
            targets = [os.readlink(f'/proc/{mount.daemon_pid()}/fd/{fd}') for fd in os.listdir(f'/proc/{mount.daemon_pid()}/fd')]
            self.assertEqual(1, targets.count(messages))
            self.assertFalse([target for target in targets if target.startswith('pipe:')])
        finally:
            mount.__exit__()


@unittest.skipIf(SANITIZED, 'a build with a sanitizer filters no system calls')
class SystemCalls(unittest.TestCase):
    def die_of(self, preloaded, call, *options, patience=5):
        """Makes a daemon make a call; its exit status, and what the client got."""
        mount = Mount(*options, '--foreground')
        trigger = mount.work + '/trigger'
        with open(mount.backing + '/f', 'w') as file:
            file.write('x')
        daemon = subprocess.Popen(mount.command(), env={**os.environ, 'LD_PRELOAD': preloaded, 'FORBIDDEN_CALL': call, 'FORBIDDEN_TRIGGER': trigger})
        try:
            self.assertTrue(seen_within(lambda: os.path.exists(mount.path + '/.ima/status'), True, 20))
            with open(mount.path + '/f') as file:
                self.assertEqual('x', file.read())
            open(trigger, 'w').close()
            got, end = [], time.monotonic() + patience
            while errno.ENOTCONN not in got and time.monotonic() < end:
                try:
                    os.stat(f'{mount.path}/new{len(got)}')
                    got.append(0)
                except OSError as error:
                    got.append(error.errno)
            try:
                status = daemon.wait(2 if errno.ENOTCONN in got else 0.1)
            except subprocess.TimeoutExpired:
                status = None
            return mount, daemon, status, got
        except BaseException:
            daemon.kill()
            mount.__exit__()
            raise

    def end(self, mount, daemon):
        mount.stop()
        daemon.wait(20)

    def test_a_call_that_it_has_no_reason_for_ends_the_daemon(self):
        with library('forbidden_call.cpp') as preloaded:
            for call in FORBIDDEN:
                with self.subTest(call=call):
                    mount, daemon, status, got = self.die_of(preloaded, call, '--tpm', 'none')
                    self.end(mount, daemon)
                    mount.__exit__()
                    self.assertEqual(-signal.SIGSYS, status)
                    self.assertEqual(errno.ENOTCONN, got[-1])
                    # Before that: the right answer, or an error of the connection.
                    self.assertLessEqual(set(got), {errno.ENOENT, errno.ECONNABORTED, errno.EIO, errno.ENOTCONN})

    def test_what_the_c_library_tries_first_is_answered(self):
        with library('forbidden_call.cpp') as preloaded:
            mount, daemon, status, got = self.die_of(preloaded, 'clone3', '--tpm', 'none', patience=0.5)
            self.end(mount, daemon)
            mount.__exit__()
            self.assertEqual((None, {errno.ENOENT}), (status, set(got)))

    def test_the_log_goes_on_after_such_a_death(self):
        with library('forbidden_call.cpp') as preloaded:
            mount, daemon, status, got = self.die_of(preloaded, 'ptrace', '--tpm', 'swtpm')
            try:
                self.assertEqual(-signal.SIGSYS, status)
                subprocess.run(['umount', mount.path], check=True)
                mount.options.remove('--foreground')
                mount.start()
                self.assertIn('/f', mount.names())
                with open(mount.path + '/f') as file:
                    self.assertEqual('x', file.read())
                self.assertEqual(0, mount.verify().returncode)
            finally:
                mount.__exit__()

    def test_the_filter_can_be_left_out(self):
        with Mount('--tpm', 'none', '--no-seccomp') as mount:
            about = status_of(mount.daemon_pid())
            self.assertEqual(('0', '1'), (about['Seccomp'], about['NoNewPrivs']))
            self.assertEqual('off', mount.status()['options']['seccomp'])


if __name__ == '__main__':
    need_mounts()
    unittest.main()
