#!/usr/bin/env python3
"""What imafs cannot do is a test too, and what else SECURITY.md says of threats that no other test shows."""
import array
import ctypes
import errno
import mmap
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import unittest

from mounting import Mount, run_tests


def write(path, data):
    with open(path, 'wb') as file:
        file.write(data)


def read(path):
    with open(path, 'rb') as file:
        return file.read()


def read_from(fd):
    return os.pread(fd, 100, 0)


class Uncovered(unittest.TestCase):
    """Ways around the mount: the bytes are read, and the log has nothing of it (T16). Each is a way to the backing tree,
    for who can reach that: SECURITY.md says what to do about it."""

    def uncovered(self, way):
        with Mount() as mount:
            write(mount.backing + '/f', b'content')
            self.assertEqual(b'content', way(mount))
            self.assertEqual([], mount.names())
            self.assertEqual(b'content', read(mount.path + '/f'))  # the control: this way it is seen
            self.assertEqual(['/f'], mount.names())

    def test_the_backing_directory_itself(self):
        self.uncovered(lambda mount: read(mount.backing + '/f'))

    def test_a_descriptor_that_was_opened_before_the_mount(self):
        mount = Mount()
        write(mount.backing + '/f', b'content')
        fd = os.open(mount.backing + '/f', os.O_RDONLY)
        with mount:
            self.assertEqual(b'content', read_from(fd))
            self.assertEqual([], mount.names())
        os.close(fd)

    def test_a_descriptor_that_another_process_hands_over(self):
        def way(mount):
            ours, theirs = socket.socketpair()
            with open(mount.backing + '/f', 'rb') as file:
                ours.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [file.fileno()]))])
            _, ancillary, _, _ = theirs.recvmsg(1, socket.CMSG_SPACE(4))
            fd = array.array('i', ancillary[0][2])[0]
            ours.close()
            theirs.close()
            data = read_from(fd)
            os.close(fd)
            return data
        self.uncovered(way)

    def test_the_root_of_a_process_outside(self):
        self.uncovered(lambda mount: read(f'/proc/self/root{mount.backing}/f'))

    def test_a_bind_mount_of_the_backing_directory(self):
        def way(mount):
            other = mount.work + '/other'
            os.mkdir(other)
            subprocess.run(['mount', '--bind', mount.backing, other], check=True)
            try:
                return read(other + '/f')
            finally:
                subprocess.run(['umount', other], check=True)
        self.uncovered(way)

    def test_a_hard_link_outside_the_tree(self):
        def way(mount):
            os.link(mount.backing + '/f', mount.work + '/link')
            return read(mount.work + '/link')
        self.uncovered(way)

    def test_a_file_handle(self):
        libc = ctypes.CDLL(None, use_errno=True)

        def way(mount):
            handle = (ctypes.c_uint32 * 34)(128)
            mount_id = ctypes.c_int()
            self.assertEqual(0, libc.name_to_handle_at(-100, (mount.backing + '/f').encode(), handle, ctypes.byref(mount_id), 0))
            directory = os.open(mount.backing, os.O_RDONLY)
            fd = libc.open_by_handle_at(directory, handle, os.O_RDONLY)
            self.assertGreaterEqual(fd, 0)
            os.close(directory)
            data = read_from(fd)
            os.close(fd)
            return data
        self.uncovered(way)

    def test_a_mapping_of_the_backing_file(self):
        def way(mount):
            with open(mount.backing + '/f', 'rb') as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
                return view[:]
        self.uncovered(way)


class Threats(unittest.TestCase):
    def test_a_file_that_changes_there_and_back_is_logged_again_only_if_asked(self):
        """T7: with the duplicate check, as in the kernel, the log does not say which of two known states is the last."""
        for options, entries in (([], 2), (['--no-dedupe'], 3)):
            with self.subTest(options=options), Mount(*options) as mount:
                for data in (b'A', b'B', b'A'):
                    write(mount.path + '/f', data)
                    mount.settle()
                    self.assertEqual(data, read(mount.path + '/f'))
                self.assertEqual(entries, mount.names().count('/f'))
                self.assertEqual(0, mount.verify().returncode)

    def test_when_the_daemon_dies_nothing_is_served(self):
        """T14: not what was measured either. (Who has a file open in passthrough mode goes on reading what was measured.)"""
        with Mount() as mount:
            write(mount.backing + '/f', b'content')
            write(mount.backing + '/g', b'other')
            self.assertEqual(b'content', read(mount.path + '/f'))
            os.kill(mount.daemon_pid(), signal.SIGKILL)
            mount.wait_for_end()
            for name in 'fg':
                with self.assertRaises(OSError) as refused:
                    read(f'{mount.path}/{name}')
                self.assertIn(refused.exception.errno, (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO))

    def test_the_user_of_a_mount_cannot_attach_to_its_daemon(self):
        """T17."""
        with Mount(user='nobody') as mount:
            pid = mount.daemon_pid()
            attach = ('import ctypes, os, sys; libc = ctypes.CDLL(None, use_errno=True); '
                      f'libc.ptrace(16, {pid}, 0, 0) == 0 and sys.exit(1); sys.exit(ctypes.get_errno() != 1)')
            words = ['setpriv', '--reuid', 'nobody', '--regid', 'nogroup', '--clear-groups', sys.executable, '-c', attach]
            done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            self.assertEqual(0, done.returncode, done.stdout)
            memory = subprocess.run([*words[:-3], 'cat', f'/proc/{pid}/maps'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self.assertNotEqual(0, memory.returncode)

    def test_locks_and_sockets_of_a_user_are_in_nobody_elses_directory(self):
        """Where others may write a directory can wait under the name of ours: its owner could put a TPM there, or take the lock away."""
        for owner, mode in ((1234, 0o777), ('nobody', 0o777), (1234, 0o700)):
            mount = Mount('--tpm', 'swtpm', user='nobody')
            try:
                runtime = f"{mount.work}/imafs-{pwd.getpwnam('nobody').pw_uid}"
                os.mkdir(runtime)
                os.chmod(runtime, mode)
                shutil.chown(runtime, owner)
                done = mount.start(check=False)
                self.assertEqual(11, done.returncode, done.stderr)
                self.assertIn(f"'{runtime}' is not a directory that only this user may enter", done.stderr)
            finally:
                mount.__exit__()

    def test_what_is_no_regular_file_is_opened_and_not_hashed(self):
        """T20: a FIFO that nobody writes to must not hold up anything; a sparse file costs time, not memory or its entry."""
        with Mount() as mount:
            os.mkfifo(mount.backing + '/fifo')
            os.mknod(mount.backing + '/null', stat.S_IFCHR | 0o666, os.makedev(1, 3))
            fd = os.open(mount.path + '/fifo', os.O_RDONLY | os.O_NONBLOCK)
            os.close(fd)
            with open(mount.backing + '/sparse', 'wb') as file:
                file.truncate(1 << 30)
            reader = threading.Thread(target=lambda: os.close(os.open(mount.path + '/sparse', os.O_RDONLY)))
            reader.start()
            write(mount.backing + '/small', b'small')
            before = time.monotonic()
            self.assertEqual(b'small', read(mount.path + '/small'))
            waited = time.monotonic() - before
            still_hashing = reader.is_alive()
            reader.join(120)
            self.assertFalse(reader.is_alive())
            self.assertTrue(not still_hashing or waited < 1, waited)
            self.assertEqual({'/small', '/sparse'}, set(mount.names()))

    def test_a_policy_that_is_relaxed_leaves_an_entry(self):
        """T15: the new rules are in the log before they act; a start without a policy can be refused."""
        with Mount() as mount:
            write(mount.backing + '/f', b'x')
            before = mount.control('measurements').count(b' policy ')
            subprocess.run(['sh', '-c', f"echo 'dont_measure func=FILE_CHECK' > {mount.path}/.ima/policy_replace"], check=True)
            self.assertEqual(before + 1, mount.control('measurements').count(b' policy '))
            self.assertEqual(b'x', read(mount.path + '/f'))
            self.assertEqual([], mount.names())
            self.assertEqual(0, mount.verify().returncode)


if __name__ == '__main__':
    run_tests()
