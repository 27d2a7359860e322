#!/usr/bin/env python3
"""What an open gets, and what log and PCR hold, under every fault of a TPM. docs/CRASH_MATRIX.md has the table."""
import contextlib
import errno
import os
import shutil
import signal
import subprocess
import time
import unittest

from mounting import IMAFS, Mount, free_ports, run_tests
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


def imafs(*words):
    return subprocess.run([IMAFS, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)


class PrivateSwtpm(unittest.TestCase):
    def test_a_swtpm_that_is_killed_again_and_again_still_quotes(self):
        # Each of these ends is, to a TPM, one without a shutdown; where its keys can be locked it locks them after a few.
        with Mount() as mount:
            key = imafs('ak', mount.path).stdout
            for turn in range(6):
                os.kill(mount.swtpm_pid(), signal.SIGKILL)
                write(f'{mount.backing}/{turn}', str(turn))
                time.sleep(QUIET)
                self.assertEqual(str(turn), try_read(f'{mount.path}/{turn}'))
                evidence = f'{mount.work}/quote{turn}'
                done = imafs('quote', mount.path, '--nonce', '00', '-o', evidence)
                self.assertEqual(0, done.returncode, done.stderr)
                self.assertEqual(key, imafs('ak', mount.path).stdout)
                self.assertEqual(0, imafs('verify', '--quote', evidence, '--nonce', '00', '--ak', evidence + '/ak.pem').returncode)

    def test_one_that_failed_on_a_full_disk_is_started_again_once_there_is_room(self):
        for remount in (False, True):
            with self.subTest(remount=remount):
                mount = Mount()
                os.mkdir(mount.state)
                subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=12m', 'none', mount.state], check=True)
                with mount:
                    self.fill_and_see(mount, remount)

    def fill_and_see(self, mount, remount):
        for name in 'ab':
            write(f'{mount.backing}/{name}', name)
        with open(mount.state + '/filler', 'wb', buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(bytes(65536)):
                pass
        tcti = ['-T', f'swtpm:path={mount.state}/tpm/sock']
        quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
        subprocess.run(['tpm2_nvdefine', *tcti, '0x1500001', '-s', '512'], **quiet)  # the TPM has to write its state
        self.assertNotEqual(0, subprocess.run(['tpm2_getcap', *tcti, 'pcrs'], **quiet).returncode, 'it has not failed')
        if remount:
            os.kill(mount.daemon_pid(), signal.SIGKILL)
            mount.stop()
        else:
            self.assertEqual(errno.EIO, try_read(mount.path + '/a'))
        os.unlink(mount.state + '/filler')
        if remount:
            mount.start()
        time.sleep(QUIET)
        self.assertEqual('b', try_read(mount.path + '/b'))
        self.assertEqual(['/b'], mount.names())
        self.assertEqual(0, mount.verify().returncode)

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

    def test_one_whose_start_hangs_holds_up_neither_files_nor_the_end(self):
        mount = Mount()
        programs = mount.work + '/programs'
        os.mkdir(programs)
        with open(programs + '/swtpm', 'w') as file:
            file.write(f'#!/bin/sh\n[ -e {mount.work}/hangs ] || exec {shutil.which("swtpm")} "$@"\necho $$ >{mount.work}/hangs; exec sleep 1000\n')
        os.chmod(programs + '/swtpm', 0o755)
        mount.prefix = ['env', f'PATH={programs}:{os.environ["PATH"]}']
        for name in 'ab':
            write(f'{mount.backing}/{name}', name)
        with mount:
            self.assertEqual('a', try_read(mount.path + '/a'))
            write(mount.work + '/hangs', '')
            os.kill(mount.swtpm_pid(), signal.SIGKILL)
            time.sleep(QUIET)
            before = time.monotonic()
            self.assertEqual(errno.EIO, try_read(mount.path + '/b'))
            self.assertLess(time.monotonic() - before, 15)
            daemon = mount.daemon_pid()
            before = time.monotonic()
            os.kill(daemon, signal.SIGTERM)
            mount.wait_for_end()
            self.assertFalse(os.path.exists(f'/proc/{daemon}/exe'), 'it has not ended')
            self.assertLess(time.monotonic() - before, 10)
            with open(mount.work + '/hangs') as file:
                os.kill(int(file.read()), signal.SIGKILL)

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
