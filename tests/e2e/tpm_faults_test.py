#!/usr/bin/env python3
"""What an open gets, and what log and PCR hold, under every fault of a TPM. docs/CRASH_MATRIX.md has the table."""
import errno
import os
import signal
import subprocess
import time
import unittest

from mounting import Mount, free_ports, run_tests
from tpm_proxy import Proxy, Swtpm

TCP_PORT = free_ports(2)  # and the next
QUIET = 0.1  # seconds without an extend after which the PCR is looked at first


def write(path, data):
    with open(path, 'w') as file:
        file.write(data)


def try_read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError as error:
        return error.errno


class Stand:
    """A mount whose TPM is a swtpm behind a proxy, with files a, b, c, d; a is measured."""

    def __init__(self, *options, port=None):
        self.mount = Mount(*options)
        self.swtpm = Swtpm(self.mount.work + '/swtpm')
        self.proxy = Proxy(self.swtpm, self.mount.work + '/proxy', port)
        self.mount.options += ['--tpm', self.proxy.tcti]
        for name in 'abcd':
            write(f'{self.mount.backing}/{name}', name)

    def __enter__(self):
        try:
            self.mount.start()
            self.read('a')
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.mount.__exit__()
        self.proxy.close()
        self.swtpm.end()

    def read(self, name):
        return try_read(f'{self.mount.path}/{name}')


class Faults(unittest.TestCase):
    def judge(self, stand, names):
        """The log has these files in this order, and replays to what tpm2_pcrread says."""
        self.assertEqual(names, ''.join(stand.mount.names()))
        verdict = stand.mount.verify()
        self.assertEqual(0, verdict.returncode, verdict.stdout + verdict.stderr)
        listing = subprocess.run(['tpm2_pcrread', '-T', f'swtpm:path={stand.swtpm.path}', 'sha256:10'], check=True,
                                 stdout=subprocess.PIPE, text=True).stdout
        self.assertIn('sha256:10 ' + listing.split('0x')[1].strip().lower(), verdict.stdout)

    def test_refused_or_not_delivered_is_eio_and_leaves_no_trace(self):
        for fault in ('refused', 'not delivered'):
            with self.subTest(fault=fault), Stand() as stand:
                stand.proxy.fault = fault
                self.assertEqual(errno.EIO, stand.read('b'))
                self.assertEqual(1, stand.proxy.met)
                self.judge(stand, '/a')
                self.assertEqual('c', stand.read('c'))
                self.assertEqual('b', stand.read('b'))
                self.judge(stand, '/a/c/b')

    def test_an_answer_that_is_lost_spoiled_or_never_comes_is_found_to_have_taken_effect(self):
        # On TCP the library's own TCTI speaks, which knows no time limit.
        for fault, seconds, port in (('answer lost', 0, None), ('answer spoiled', 0, None), ('no answer', 10, None),
                                     ('answer lost', 0, TCP_PORT), ('no answer', 10, TCP_PORT)):
            with self.subTest(fault=fault, port=port), Stand(port=port) as stand:
                stand.proxy.fault = fault
                before = time.monotonic()
                self.assertEqual('b', stand.read('b'))
                self.assertLessEqual(seconds, time.monotonic() - before)
                self.assertGreater(seconds + 5, time.monotonic() - before)
                self.assertEqual(1, stand.proxy.met)
                self.judge(stand, '/a/b')
                self.assertEqual('b', stand.read('b'))
                self.judge(stand, '/a/b')

    def test_a_daemon_that_is_gone_and_back_with_its_state(self):
        with Stand() as stand:
            stand.proxy.close()
            self.assertEqual(errno.EIO, stand.read('b'))
            self.assertEqual('a', stand.read('a'))  # what is measured needs no TPM
            self.assertFalse(stand.mount.status()['tpm']['ok'])
            self.assertEqual(['/a'], stand.mount.names())
            stand.proxy.listen()
            self.assertEqual('b', stand.read('b'))
            self.judge(stand, '/a/b')
            self.assertTrue(stand.mount.status()['tpm']['ok'])

    def test_a_daemon_that_is_back_without_its_state_starts_a_new_log(self):
        for noticed in (False, True):
            with self.subTest(noticed=noticed), Stand() as stand:
                if noticed:
                    stand.proxy.close()
                    self.assertEqual(errno.EIO, stand.read('b'))
                stand.swtpm.end()
                stand.swtpm.start()
                if noticed:
                    stand.proxy.listen()
                time.sleep(QUIET)
                self.assertEqual('b', stand.read('b'))
                self.assertEqual('a', stand.read('a'))  # measured again: this log has not got it
                self.judge(stand, '/b/a')
                first = stand.mount.control('measurements').split(b'\n')[0]
                self.assertTrue(first.endswith(b' boot_aggregate'), first)
                self.assertTrue(os.path.exists(stand.mount.state + '/archive/1/end-pcrs'))

    def test_a_foreign_extend_is_told_at_the_next_open(self):
        with Stand() as stand:
            subprocess.run(['tpm2_pcrextend', '-T', f'swtpm:path={stand.swtpm.path}', '10:sha256=' + '11' * 32], check=True)
            time.sleep(QUIET)
            self.assertEqual('b', stand.read('b'))
            self.assertTrue(stand.mount.status()['tpm']['foreign_extend'])
            self.assertEqual(1, stand.mount.verify().returncode)

    def test_continue_lists_what_the_pcr_lacks_and_catches_up(self):
        with Stand('--tpm-error', 'continue') as stand:
            stand.proxy.close()
            self.assertEqual('b', stand.read('b'))
            self.assertEqual('c', stand.read('c'))
            self.assertEqual(2, stand.mount.status()['tpm']['missing_extends'])
            stand.proxy.listen()
            self.assertEqual('d', stand.read('d'))
            self.judge(stand, '/a/b/c/d')


class PrivateSwtpm(unittest.TestCase):
    def test_it_is_started_again_when_it_dies_and_a_new_log_begins(self):
        with Mount() as mount:
            write(mount.backing + '/a', 'a')
            self.assertEqual('a', try_read(mount.path + '/a'))
            first = mount.swtpm_pid()
            os.kill(first, signal.SIGKILL)
            time.sleep(QUIET)
            write(mount.backing + '/b', 'b')
            self.assertEqual('b', try_read(mount.path + '/b'))
            self.assertNotEqual(first, mount.swtpm_pid())
            self.assertEqual(['/b'], mount.names())
            self.assertEqual('a', try_read(mount.path + '/a'))
            self.assertEqual(['/b', '/a'], mount.names())
            self.assertEqual(0, mount.verify().returncode)

    def test_sockets_that_were_removed_end_the_swtpm_and_start_another(self):
        with Mount() as mount:
            write(mount.backing + '/a', 'a')
            self.assertEqual('a', try_read(mount.path + '/a'))
            for name in ('sock', 'sock.ctrl'):
                os.unlink(f'{mount.state}/tpm/{name}')
            time.sleep(QUIET)
            write(mount.backing + '/b', 'b')
            self.assertEqual('b', try_read(mount.path + '/b'))
            self.assertEqual(['/b'], mount.names())
            self.assertEqual(0, mount.verify().returncode)


if __name__ == '__main__':
    run_tests()
