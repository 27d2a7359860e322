#!/usr/bin/env python3
"""What a start finds of a daemon that was killed: the log says so, and names the files of its mount that somebody still holds."""
import mmap
import os
import signal
import subprocess
import time
import unittest

from mounting import Mount, run_tests


def write(path, data):
    with open(path, 'w') as file:
        file.write(data)


def read(path):
    with open(path) as file:
        return file.read()


class AfterCrash(unittest.TestCase):
    def start_entries(self, mount):
        found = []
        for line in mount.control('measurements').decode().split('\n'):
            words = line.split(' ')
            if len(words) > 5 and words[2] == 'ima-buf' and words[4] == 'start':
                found.append(bytes.fromhex(words[5]).decode())
        return found

    def kill(self, mount):
        os.kill(mount.daemon_pid(), signal.SIGKILL)
        time.sleep(0.2)
        subprocess.run(['umount', '-l', mount.path], check=True)

    def test_a_clean_end_leaves_no_trace(self):
        with Mount() as mount:
            write(mount.backing + '/f', 'f')
            self.assertEqual('f', read(mount.path + '/f'))
            mount.stop()
            mount.start()
            self.assertFalse([entry for entry in self.start_entries(mount) if 'after=crash' in entry])

    def test_files_that_are_held_open_or_mapped_have_a_violation_each(self):
        with Mount() as mount:
            for name in ('open', 'mapped', 'closed'):
                write(f'{mount.backing}/{name}', name)
            held = open(mount.path + '/open')
            with open(mount.path + '/mapped', 'rb') as file:
                mapping = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
            self.assertEqual('closed', read(mount.path + '/closed'))
            self.kill(mount)
            mount.start()
            self.assertTrue(self.start_entries(mount)[-1].split(';')[1] == 'after=crash', self.start_entries(mount))
            zeros = [line.split(' ')[-1] for line in mount.control('measurements').decode().split('\n') if ' ' + '0' * 40 + ' ' in line]
            self.assertEqual({'/open', '/mapped'}, set(zeros))
            self.assertEqual(b'2', mount.control('violations').strip())
            self.assertEqual(0, mount.verify().returncode)
            self.assertEqual('closed', read(mount.path + '/closed'))
            held.close()
            mapping.close()

    def test_a_private_tpm_whose_pid_file_is_lost_is_found_again(self):
        with Mount() as mount:
            write(mount.backing + '/f', 'f')
            self.assertEqual('f', read(mount.path + '/f'))
            first = mount.swtpm_pid()
            self.kill(mount)
            os.unlink(mount.state + '/tpm/pid')
            mount.start()
            self.assertIn('/f', mount.names())  # the log goes on, in the same TPM
            self.assertEqual(0, mount.verify().returncode)
            os.kill(first, 0)


if __name__ == '__main__':
    run_tests()
