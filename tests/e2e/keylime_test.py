#!/usr/bin/env python3
"""What Keylime's agent and verifier do with the log (docs/KEYLIME.md): a reader and a parser written to the same rules."""
import hashlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import unittest

from mounting import IMAFS, Mount, run_tests
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
        # 0 and 1: Keylime takes it for no policy, and in push mode asks for no list.
        assert policy['meta']['generator'] > 1, policy['meta']
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
        listed = self.policy['ima-buf' if template == 'ima-buf' else 'digests']  # boot_aggregate is an entry like the others
        if fields[0].split(':')[1] not in listed.get(fields[1], []):
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
                verifier = Verifier(json.loads(tool('manifest', mount.backing, '--own-entries', mount.path, '--format', 'keylime')))
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

    def test_one_tpm_over_tcp_without_a_resource_manager(self):
        """An agent quotes while imafs extends: nobody holds the only connection or leaves an object in the TPM's three places."""
        work = tempfile.mkdtemp(prefix='imafs-e2e-')
        self.addCleanup(shutil.rmtree, work)
        with socket.create_server(('127.0.0.1', 0)) as free:
            port = free.getsockname()[1]
        tpm = subprocess.Popen(['swtpm', 'socket', '--tpm2', '--tpmstate', 'dir=' + work, '--server', f'type=tcp,port={port},disconnect=on',
                                '--ctrl', f'type=tcp,port={port + 1}', '--flags', 'not-need-init,startup-clear'])
        self.addCleanup(tpm.wait)
        self.addCleanup(tpm.kill)
        tcti = f'swtpm:host=127.0.0.1,port={port}'

        def tpm2(*words):
            return subprocess.run([words[0], '-T', tcti, *words[1:]], cwd=work, check=True, stdout=subprocess.PIPE, text=True, timeout=20).stdout
        for _ in range(100):
            if subprocess.run(['tpm2_pcrread', '-T', tcti, 'sha256:0'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
                break
            time.sleep(0.05)
        with Mount('--tpm', tcti) as mount:
            tpm2('tpm2_createprimary', '-Q', '-C', 'o', '-c', 'primary')  # the agent's, which it has loaded for as long as it lives
            for i in range(5):
                fill(mount, 20, first=20 * i)
                tool('quote', mount.path, '--nonce', '00' * 20, '-o', work + '/quote')
                tool('verify', mount.path)
                self.assertEqual(1, tpm2('tpm2_getcap', 'handles-transient').count('0x80'))
                self.assertEqual('', tpm2('tpm2_getcap', 'handles-loaded-session').strip())
            boot = ''.join(re.findall('0x([0-9A-F]+)', tpm2('tpm2_pcrread', 'sha256:0,1,2,3,4,5,6,7,8,9')))
            first = mount.control('ascii_runtime_measurements').decode().splitlines()[0].split(' ')
            self.assertEqual(['sha256:' + hashlib.sha256(bytes.fromhex(boot)).hexdigest(), 'boot_aggregate'], first[3:5])

    def test_the_policy_has_what_the_mount_logs_by_itself(self):
        import json
        for words in ((), ('--template', 'ima'), ('--policy', 'builtin:critical_data+tcb')):
            with Mount(*words) as mount:
                with open(mount.backing + '/plain', 'w') as file:
                    file.write('plain')
                of_mount = json.loads(tool('manifest', mount.path, '--format', 'keylime'))
                self.assertEqual(of_mount, json.loads(tool('manifest', mount.backing, '--own-entries', mount.path, '--format', 'keylime')))
                verifier = Verifier(of_mount)
                verifier.process(mount.control('ascii_runtime_measurements').decode())
                self.assertEqual([], verifier.failures)
                self.assertEqual(mount.control('runtime_measurements_count'), b'%d\n' % len(verifier.values))
                without = json.loads(tool('manifest', mount.backing, '--format', 'keylime'))
                self.assertEqual((['/plain'], {}), (list(without['digests']), without['ima-buf']))
        self.assertIn('it is no m', tool('manifest', '/sys/fs', '--own-entries', '/proc', '--format', 'keylime', check=2))

    def test_a_policy_of_a_whole_distribution_is_read_at_once(self):
        work = tempfile.mkdtemp(prefix='imafs-e2e-')
        self.addCleanup(shutil.rmtree, work, ignore_errors=True)
        with open(work + '/policy', 'w') as file:
            json.dump({'digests': {f'/usr/share/a/package/file{i}': [f'{i:064x}'] for i in range(100_000)}, 'excludes': []}, file)
        # Time that grows with the square of it would be minutes.
        done = subprocess.run([IMAFS, 'verify', '--quote', work + '/none', '--allow', work + '/policy'], stderr=subprocess.PIPE, text=True, timeout=30)
        self.assertIn('/none/quote.msg', done.stderr)

    def test_the_log_is_there_when_the_mount_says_so(self):
        with Mount() as mount:
            self.assertTrue(os.path.exists(mount.path + '/.ima/ascii_runtime_measurements'))


if __name__ == '__main__':
    run_tests()
