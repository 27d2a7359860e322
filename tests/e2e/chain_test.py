#!/usr/bin/env python3
"""The log and the PCR stay one chain: a quote at any moment is of a prefix of the log, and a full disk leaves no gap.
FILES: how many files each test opens (1,500; 10,000 by hand: FILES=10000 chain_test.py)."""
import errno
import hashlib
import os
import subprocess
import threading
import time
import unittest

from mounting import Mount, run_tests

FILES = int(os.environ.get('FILES', '1500'))


def make_files(directory, first, count):
    for i in range(first, first + count):
        with open(f'{directory}/f{i}', 'w') as file:
            file.write(f'file {i}')


class Quotes:
    """tpm2_quote of PCR 10 in a loop, beside a mount that has the same TPM."""

    def __init__(self, mount):
        self.mount = mount
        self.tcti = 'swtpm:path=' + mount.state + '/tpm/sock'
        self.run('tpm2_createek', '-c', 'ek', '-G', 'ecc')
        self.run('tpm2_createak', '-C', 'ek', '-c', 'ak', '-G', 'ecc', '-g', 'sha256', '-s', 'ecdsa', '-u', 'ak.pub')
        # There is no resource manager: what the loop needs stays outside, each command loads it.
        self.run('tpm2_flushcontext', '-t')

    def run(self, *words):
        return subprocess.run([words[0], '-T', self.tcti, *words[1:]], cwd=self.mount.work, check=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True).stdout

    def take(self):
        """The sha256 value that was signed: tpm2_checkquote has compared it with the signature. None: the PCR moved on
        between the quote and the tool's own reading of it."""
        try:
            self.run('tpm2_quote', '-c', 'ak', '-l', 'sha256:10', '-m', 'message', '-s', 'signature', '-o', 'pcrs', '-g', 'sha256', '-q', 'abcd')
        except subprocess.CalledProcessError as error:
            if 'Error validating calculated PCR composite' not in error.stderr:
                raise AssertionError(error.stderr) from error
            return None
        finally:
            self.run('tpm2_flushcontext', '-t')
        text = subprocess.run(['tpm2_checkquote', '-u', 'ak.pub', '-m', 'message', '-s', 'signature', '-f', 'pcrs', '-g', 'sha256', '-q', 'abcd'],
                              cwd=self.mount.work, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True).stdout
        return text.split('0x')[1].split()[0].lower()


def prefixes(mount):
    """The PCR after each entry: {value: number of entries}."""
    value, values = bytes(32), {}
    values[value.hex()] = 0
    for number, line in enumerate(mount.control('ascii_runtime_measurements_sha256').split(b'\n')[:-1], 1):
        digest = bytes.fromhex(line.split()[1].decode())
        value = hashlib.sha256(value + (digest if any(digest) else b'\xff' * 32)).digest()
        values[value.hex()] = number
    return values


class Chain(unittest.TestCase):
    def test_a_quote_at_any_moment_is_of_a_prefix_of_the_log(self):
        with Mount() as mount:
            quotes = Quotes(mount)
            read = 0
            enough = threading.Event()

            def read_new_files():
                nonlocal read
                while read < FILES or not enough.is_set():
                    make_files(mount.backing, read, 1)
                    with open(f'{mount.path}/f{read}') as file:
                        self.assertEqual(f'file {read}', file.read())
                    read += 1
                    if read % 100 == 0:
                        time.sleep(0.01)  # in which a quote can be had on a slow machine, too
            reader = threading.Thread(target=read_new_files)
            taken = []
            reader.start()
            until = time.monotonic() + 120
            while reader.is_alive():
                if quoted := quotes.take():
                    taken.append((quoted, int(mount.control('runtime_measurements_count'))))
                if len(taken) >= 3 or time.monotonic() > until:
                    enough.set()
            reader.join()
            taken.append((quotes.take(), int(mount.control('runtime_measurements_count'))))
            known = prefixes(mount)
            before = 0
            for quoted, count in taken:
                self.assertTrue(quoted in known, 'a quoted value that no prefix of the log leads to')
                self.assertLessEqual(known[quoted], count)  # never more than the log held right after
                self.assertLessEqual(before, known[quoted])
                before = known[quoted]
            self.assertGreater(len(taken), 3)
            print(f'{len(taken)} quotes during {read} opens', flush=True)
            self.assertEqual(0, mount.verify().returncode)

    def test_a_full_disk_denies_and_all_goes_on_when_there_is_room(self):
        mount = Mount()
        os.makedirs(mount.state)
        # Room for half of the entries, beside the TPM's state.
        subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={200 * 1024 + FILES * 110}', 'none', mount.state], check=True)
        with mount:
            make_files(mount.backing, 0, FILES)
            with open(mount.state + '/ballast', 'wb') as ballast:
                ballast.write(bytes(FILES * 55))
            denied, served = [], []
            for i in range(FILES):
                try:
                    with open(f'{mount.path}/f{i}') as file:
                        self.assertEqual(f'file {i}', file.read())
                    served.append(f'/f{i}')
                except OSError as error:
                    self.assertIn(error.errno, (errno.EIO, errno.ENOSPC))
                    denied.append(i)
            self.assertTrue(served and denied)
            self.assertEqual(served, mount.names())  # nothing that is not in the log was served
            os.unlink(mount.state + '/ballast')
            subprocess.run(['mount', '-o', f'remount,size={1024 * 1024 + FILES * 400}', mount.state], check=True)
            for i in denied:
                with open(f'{mount.path}/f{i}') as file:
                    self.assertEqual(f'file {i}', file.read())
            self.assertEqual(served + [f'/f{i}' for i in denied], mount.names())
            verdict = mount.verify()
            self.assertEqual(0, verdict.returncode, verdict.stdout)
            print(f'{len(served)} served, {len(denied)} denied and served later', flush=True)


if __name__ == '__main__':
    run_tests()
