#!/usr/bin/env python3
"""Evidence for another machine: quote, verify where there is no TPM, and every way to tamper with it found and named."""
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import unittest

from mounting import IMAFS, Mount, private_mounts_refused, program_for_users, run_tests
from tools_test import fill, tool

NONCE = '00112233445566778899aabbccddeeff'


class Quoted(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.mount = Mount()
        cls.addClassCleanup(cls.mount.__exit__)
        cls.mount.start()
        with open(cls.mount.backing + '/a name\nwith all', 'w') as file:
            file.write('x')
        with open(cls.mount.path + '/a name\nwith all') as file:
            file.read()
        fill(cls.mount, 20)
        tool('manifest', cls.mount.backing, '-o', cls.mount.work + '/manifest')
        tool('quote', cls.mount.path, '--nonce', NONCE, '-o', cls.mount.work + '/quote')

    def setUp(self):
        """A copy to tamper with."""
        self.copy = self.mount.work + '/copy'
        shutil.copytree(self.mount.work + '/quote', self.copy)
        self.addCleanup(shutil.rmtree, self.copy)

    def judge(self, *words, nonce=NONCE, check=0):
        if '--ak' not in words:
            words += ('--ak', self.mount.work + '/quote/ak.pem')
        return tool('verify', '--quote', self.copy, '--nonce', nonce, *words, check=check)

    def failing(self, *words, **more):
        """The names of the checks that do not hold."""
        return re.findall(r'FAIL (\w+):', self.judge(*words, check=1, **more))

    def flip(self, name, position):
        path = f'{self.copy}/{name}'
        with open(path, 'rb') as file:
            data = bytearray(file.read())
        data[position] ^= 1
        with open(path, 'wb') as file:
            file.write(data)

    def test_it_verifies_without_a_tpm(self):
        if private_mounts_refused():
            self.skipTest(private_mounts_refused())
        words = ['unshare', '--net', '--mount', 'sh', '-c', 'mount -t tmpfs none /var/lib; mount -t tmpfs none /run; exec "$0" "$@"', IMAFS,
                 'verify', '--quote', self.copy, '--nonce', NONCE, '--ak', self.mount.work + '/quote/ak.pem', '--allow', self.mount.work + '/manifest']
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual(0, done.returncode, done.stdout)
        self.assertIn('verified: 24 entries', done.stdout)
        self.assertIn('21 files, 0 not accepted', done.stdout)
        found = json.loads(self.judge('--json'))
        self.assertEqual({'verified', 24}, {found['verdict'], found['entries']})
        self.assertIs(True, found['holds'])
        self.assertEqual(['key', 'signature', 'nonce', 'pcrs', 'log', 'boot_aggregate'], [check['name'] for check in found['checks'] if check['holds']])

    def test_tpm2_checkquote_accepts_the_same_files(self):
        words = ['tpm2_checkquote', '-u', 'ak.pem', '-m', 'quote.msg', '-s', 'quote.sig', '-g', 'sha256', '-q', NONCE,
                 '-f', 'pcrs.bin']
        subprocess.run(words, cwd=self.copy, check=True, stdout=subprocess.DEVNULL)
        self.flip('pcrs.bin', 150)
        self.assertNotEqual(0, subprocess.run(words, cwd=self.copy, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode)

    def test_another_nonce(self):
        self.assertEqual(['nonce'], self.failing(nonce='00' * 16))

    def test_another_key(self):
        subprocess.run(['openssl', 'genpkey', '-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256', '-out', 'key'], cwd=self.copy, check=True,
                       stderr=subprocess.DEVNULL)
        subprocess.run(['openssl', 'pkey', '-in', 'key', '-pubout', '-out', 'other.pem'], cwd=self.copy, check=True)
        self.assertEqual(['key', 'signature'], self.failing('--ak', self.copy + '/other.pem'))

    def test_each_byte_of_the_signature_and_the_quote_matters(self):
        for name in ('quote.sig', 'quote.msg'):
            size = os.path.getsize(f'{self.copy}/{name}')
            for position in range(0, size, 7):
                self.flip(name, position)
                self.assertIn('signature', self.failing())
                self.flip(name, position)
        self.judge()

    def test_a_quote_that_is_cut_short(self):
        os.truncate(self.copy + '/quote.msg', 40)
        self.assertEqual(['signature', 'quote'], self.failing())
        os.truncate(self.copy + '/quote.msg', 0)
        self.assertIn('quote', self.failing())

    def test_other_pcr_values(self):
        with open(self.copy + '/pcrs') as file:
            lines = file.read()
        with open(self.copy + '/pcrs', 'w') as file:
            file.write(re.sub(r'(:3: )00', r'\g<1>01', lines))
        self.assertEqual(['pcrs', 'boot_aggregate'], self.failing())

    def test_another_log(self):
        size = os.path.getsize(self.copy + '/log')
        for position in range(4, size, 53):
            self.flip('log', position)
            self.assertIn('log', self.failing())
            self.flip('log', position)
        os.truncate(self.copy + '/log', size - 1)
        self.assertIn('log', self.failing())

    def test_the_log_of_another_machine(self):
        with Mount() as other:
            fill(other, 3)
            tool('quote', other.path, '--nonce', NONCE, '-o', other.work + '/quote')
            shutil.copy(other.work + '/quote/log', self.copy + '/log')
        self.assertEqual(['log'], self.failing())

    def test_a_file_that_is_not_in_the_manifest_or_another(self):
        with open(self.mount.work + '/manifest') as file:
            lines = file.read().splitlines(keepends=True)
        changed = self.copy + '/manifest'
        with open(changed, 'w') as file:
            file.writelines(('0' * 64 + line[64:] if line.endswith('/f3\n') else line) for line in lines if not line.endswith('/f5\n'))
        self.assertEqual(['files'], self.failing('--allow', changed))
        text = self.judge('--allow', changed, check=1)
        self.assertIn('/f3: another digest', text)
        self.assertIn('/f5: not in the manifest', text)

    def test_a_manifest_with_the_line_ends_of_another_system(self):
        with open(self.mount.work + '/manifest', newline='') as file:
            text = file.read()
        with open(self.copy + '/manifest', 'w', newline='') as file:
            file.write(text.replace('\n', '\r\n'))
        self.assertIn('0 not accepted', self.judge('--allow', self.copy + '/manifest'))

    def test_bad_manifests_are_named_by_file_and_line(self):
        path = self.copy + '/bad'
        for text, where in (('# a comment\nzz  /f\n', ':2: no digest'), (f'{"0" * 64}/f\n', ':1: no digest'), (f'{"0" * 64} /f\n', ':1: a digest, two'),
                            ('{"digests": 3}', 'an object'), ('{\n"digests": {\n ]', 'bad:3: no JSON'), ('{"digests":{},"excludes":["("]}', 'regular expression'),
                            ('{"digests":{},"excludes":7}', 'no string')):
            with open(path, 'w') as file:
                file.write(text)
            self.assertIn(where, self.judge('--allow', path, check=2))

    def test_missing_files_and_wrong_words(self):
        os.unlink(self.copy + '/pcrs')
        self.assertIn('pcrs', self.judge(check=2))
        self.assertIn('hexadecimal', tool('verify', '--quote', self.mount.work + '/quote', '--nonce', 'xyz', check=2))
        self.assertIn('hexadecimal', tool('quote', self.mount.path, '--nonce', 'x', '-o', self.copy, check=2))
        tool('quote', self.mount.work, '--nonce', '00', '-o', self.copy, check=2)

    def test_an_empty_nonce_is_none(self):
        # --nonce "$unset" must not mean that any nonce will do.
        self.assertIn('hexadecimal', self.judge(nonce='', check=2))
        self.assertIn('64 bytes', tool('quote', self.mount.path, '--nonce', '00' * 65, '-o', self.copy, check=2))

    def test_what_is_no_key_and_no_quote_says_so(self):
        for text in ('', 'no key'):
            with open(self.copy + '/text', 'w') as file:
                file.write(text)
            self.assertRegex(self.judge('--ak', self.copy + '/text', check=2), r"^imafs: '.*/text' is no public key")
        # What the evidence says about itself is for people: no verdict depends on it.
        for about in ('', '[]', '{"pcr": "x"}', '{"pcr": 1e99}', '{"base": "nonsense"}', '{"pcr": 10,'):
            with open(self.copy + '/about.json', 'w') as file:
                file.write(about)
            self.judge()
        for handle in ('0x81000099', '0x40000001', '0x3'):
            said = tool('quote', self.mount.path, '--nonce', '00', '-o', self.copy, '--ak', handle, check=6)
            self.assertRegex(said, r'^imafs: no attestation key at that handle.*\n$')

    def test_a_violation_is_not_accepted(self):
        with Mount() as mount:
            fill(mount, 1)
            tool('manifest', mount.backing, '-o', mount.work + '/manifest')
            with open(mount.path + '/f0') as file, open(mount.backing + '/f0', 'a'):
                file.read()
            tool('quote', mount.path, '--nonce', NONCE, '-o', mount.work + '/quote')
            self.assertIn('/f0: a violation', tool('verify', '--quote', mount.work + '/quote', '--allow', mount.work + '/manifest', check=1))


class Manifests(unittest.TestCase):
    def test_sha256sum_accepts_it_and_keylime_form_says_the_same(self):
        with Mount() as mount:
            for name in ('plain', 'with blank', 'with\\slash', 'with\nline', 'deep/er'):
                os.makedirs(os.path.dirname(f'{mount.backing}/{name}'), exist_ok=True)
                with open(f'{mount.backing}/{name}', 'w') as file:
                    file.write(name)
            os.symlink('plain', mount.backing + '/symlink')
            os.mkfifo(mount.backing + '/fifo')
            tool('manifest', mount.backing, '-o', mount.work + '/sums')
            with open(mount.work + '/sums') as file:
                relative = file.read().replace('  /', '  ./')
            subprocess.run(['sha256sum', '-c', '--strict', '--quiet', '-'], cwd=mount.backing, input=relative, text=True, check=True)
            self.assertEqual(5, len(relative.splitlines()))
            policy = json.loads(tool('manifest', mount.backing, '--format', 'keylime', '--exclude', '/deep'))
            self.assertEqual({'/plain', '/with_blank', '/with\\slash', '///with%0Aline'}, set(policy['digests']))
            self.assertEqual([hashlib.sha256(b'plain').hexdigest()], policy['digests']['/plain'])
            self.assertEqual((1, ['/deep'], 'sha1'), (policy['meta']['version'], policy['excludes'], policy['ima']['log_hash_alg']))
            self.assertEqual(tool('manifest', mount.backing), tool('manifest', mount.path))

    def test_what_cannot_be_listed_is_said(self):
        with Mount() as mount:
            fill(mount, 2)
            self.assertIn('Not a directory', tool('manifest', mount.backing + '/f0', check=2))
            os.mkdir(mount.work + '/out')
            self.assertIn('Is a directory', tool('manifest', mount.backing, '-o', mount.work + '/out', check=2))
            self.assertFalse(os.path.exists(mount.work + '/out.partial'))
            for path in (mount.work, mount.backing):
                os.chmod(path, 0o755)
            os.chmod(mount.backing + '/f1', 0)
            words = ['setpriv', '--reuid', 'nobody', '--clear-groups', program_for_users(mount.work), 'manifest', mount.backing]
            done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self.assertEqual((2, 1), (done.returncode, len(done.stdout.splitlines())))
            self.assertRegex(done.stderr, r"f1': Permission denied\nimafs: 1 file could not be read and is not in the manifest\n$")

    def test_an_output_that_is_no_file_is_written_to_and_not_replaced(self):
        with Mount() as mount:
            fill(mount, 1)
            device, link = mount.work + '/full', mount.work + '/link'
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
            open(mount.work + '/sums', 'w').close()
            os.symlink('sums', link)
            self.assertIn('No space left', tool('manifest', mount.backing, '-o', device, check=2))
            self.assertIn('No space left', tool('report', mount.path, '-o', device, check=2))
            self.assertTrue(stat.S_ISCHR(os.stat(device).st_mode))
            self.assertFalse(os.path.exists(device + '.partial'))
            tool('manifest', mount.backing, '-o', link)
            self.assertTrue(os.path.islink(link) and os.path.getsize(mount.work + '/sums') > 0)
            self.assertEqual(tool('manifest', mount.backing), tool('manifest', mount.backing, '-o', '/dev/stdout'))


if __name__ == '__main__':
    run_tests()
