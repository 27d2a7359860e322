#!/usr/bin/env python3
"""What Keylime's agent and verifier do with the log (docs/KEYLIME.md): a reader and a parser written to the same rules."""
import hashlib
import os
import struct
import subprocess
import sys
import unittest

from mounting import Mount
from tools_test import fill, tool


class Agent:
    """Opens the log once, remembers how far it has read, and wants each tail to be UTF-8."""

    def __init__(self, path):
        self.file = open(path, 'rb', buffering=0)
        self.position = 0

    def tail(self):
        self.file.seek(self.position)
        data = b''
        while part := self.file.read(65536):
            data += part
        self.position += len(data)
        return data.decode('utf-8')

    def close(self):
        self.file.close()


def lengthed(data):
    return struct.pack('<I', len(data)) + data


def template_data(template, fields):
    """The hashed bytes of a line, as the verifier makes them again from its text."""
    if template in ('ima-ng', 'ima-sig', 'ima-buf'):
        algorithm, digest = fields[0].split(':')
        data = lengthed(algorithm.encode() + b':\0' + bytes.fromhex(digest)) + lengthed(fields[1].encode() + b'\0')
        if template != 'ima-ng':
            data += lengthed(bytes.fromhex(fields[2] if len(fields) > 2 else ''))
        return data
    if template == 'ima':
        return bytes.fromhex(fields[0]) + fields[1].encode().ljust(256, b'\0')
    raise AssertionError(f'a template that Keylime does not know: {template}')


class Verifier:
    def __init__(self, policy):
        self.value, self.policy, self.failures, self.values = bytes(32), policy, [], []

    def process(self, text):
        for line in text.splitlines():
            pcr, shown, template, *fields = line.split(' ')
            assert pcr == '10', line
            if set(shown) == {'0'}:
                self.failures.append('violation ' + fields[1])
                extended = b'\xff' * 32
            else:
                data = template_data(template, fields)
                assert hashlib.sha1(data).hexdigest() == shown, line
                extended = hashlib.sha256(data).digest()
                self.judge(template, fields)
            self.value = hashlib.sha256(self.value + extended).digest()
            self.values.append(self.value.hex())

    def judge(self, template, fields):
        if template == 'ima-buf' or fields[1] == 'boot_aggregate':
            return
        if fields[0].split(':')[1] not in self.policy['digests'].get(fields[1], []):
            self.failures.append('unknown ' + fields[1])


class Keylime(unittest.TestCase):
    def quoted(self, mount):
        out = subprocess.run(['tpm2_pcrread', '-T', f'swtpm:path={mount.state}/tpm/sock', 'sha256:10'], check=True, stdout=subprocess.PIPE, text=True).stdout
        return out.split('0x')[1].strip().lower()

    def test_increments_replay_to_the_register_and_files_to_the_policy(self):
        import json
        for template in ('ima-ng', 'ima-sig'):
            with Mount('--template', template) as mount:
                names = ['plain', 'with blank', 'ütf8 名', 'line\nbreak', 'bad\udcff', 'per%cent']
                for name in names:
                    with open(f'{mount.backing}/{name}', 'w') as file:
                        file.write(name.encode(errors='surrogateescape').hex())
                verifier = Verifier(json.loads(tool('manifest', mount.backing, '--format', 'keylime')))
                agent = Agent(mount.path + '/.ima/ascii_runtime_measurements')
                self.addCleanup(agent.close)
                self.assertIn('boot_aggregate', agent.tail().split('\n')[0])
                agent.position = 0
                for name in names:
                    with open(f'{mount.path}/{name}') as file:
                        file.read()
                    register = self.quoted(mount)  # the quote, then the log: it may have more, never less
                    verifier.process(agent.tail())
                    self.assertIn(register, verifier.values)
                self.assertEqual([], verifier.failures)
                fill(mount, 1)
                with open(mount.path + '/f0') as file, open(mount.path + '/f0', 'a'):
                    file.read()
                verifier.process(agent.tail())
                self.assertEqual(['unknown /f0', 'violation /f0'], verifier.failures)
                self.assertEqual(self.quoted(mount), verifier.value.hex())
                self.assertEqual('', agent.tail())

    def test_the_log_is_there_when_the_mount_says_so(self):
        with Mount() as mount:
            self.assertTrue(os.path.exists(mount.path + '/.ima/ascii_runtime_measurements'))


if __name__ == '__main__':
    if os.geteuid() != 0:
        sys.exit(77)
    unittest.main(verbosity=2)
