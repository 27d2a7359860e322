#!/usr/bin/env python3
"""docs/RECIPES.md, block by block, as it stands there."""
import os
import re
import shutil
import subprocess
import tempfile
import unittest

from mounting import IMAFS, run_tests

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def blocks():
    with open(ROOT + '/docs/RECIPES.md') as document:
        return re.findall(r'^```sh\n(.*?)^```', document.read(), re.DOTALL | re.MULTILINE)


def make_root(directory):
    """cat, ls and sh with their libraries, and a file to read."""
    for program in ('cat', 'ls', 'sh'):
        path = os.path.realpath(shutil.which(program, path='/usr/bin:/bin'))
        listed = subprocess.run(['ldd', path], stdout=subprocess.PIPE, text=True, check=True).stdout
        os.makedirs(directory + '/bin', exist_ok=True)
        shutil.copy(path, f'{directory}/bin/{program}')
        for library in re.findall(r'(/\S+)', listed):
            os.makedirs(os.path.dirname(directory + library), exist_ok=True)
            shutil.copy(library, directory + library)
    for name in ('etc', 'dev', 'proc', 'tmp'):
        os.makedirs(f'{directory}/{name}', exist_ok=True)
    with open(directory + '/etc/motd', 'w') as file:
        file.write('hello\n')


class Recipes(unittest.TestCase):
    def setUp(self):
        self.work = tempfile.mkdtemp(prefix='imafs-e2e-')
        make_root(self.work + '/rootfs')

    def tearDown(self):
        for name in os.listdir(self.work):
            if os.path.ismount(f'{self.work}/{name}'):
                subprocess.run(['umount', '-l', f'{self.work}/{name}'])
        shutil.rmtree(self.work, ignore_errors=True)

    def run_block(self, block, more='', check=True):
        done = subprocess.run(['bash', '-e', '-c', block + more], cwd=self.work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120,
                              env={**os.environ, 'PATH': os.path.dirname(IMAFS) + ':' + os.environ['PATH']})
        if check and done.returncode != 0:
            raise AssertionError(done.stdout + done.stderr)
        return done

    def need_bwrap(self):
        done = subprocess.run(['bwrap', '--ro-bind', '/', '/', '--unshare-all', 'true'], stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            self.skipTest(f'bwrap cannot work here: {done.stderr.strip()}')

    def read(self, name):
        with open(f'{self.work}/{name}') as file:
            return file.read()

    def test_containers_have_logs_of_their_own(self):
        self.need_bwrap()
        done = self.run_block(blocks()[0])
        self.assertIn('hello', done.stdout)
        for name, has, lacks in (('web', ('/bin/cat', '/etc/motd'), '/bin/ls'), ('batch', ('/bin/ls',), '/etc/motd')):
            names = [line.split(' ')[4] for line in self.read('log-' + name).splitlines() if ' ima-ng ' in line]
            for wanted in has:
                self.assertIn(wanted, names)
            self.assertNotIn(lacks, names)
            self.assertTrue(self.read('verdict-' + name).startswith('verified'))

    def test_a_secret_sealed_to_what_was_measured(self):
        self.run_block(blocks()[1])
        self.assertEqual('the key of the data disk', self.read('secret'))
        # The same words over a file that was changed since.
        with open(self.work + '/rootfs/etc/motd', 'a') as file:
            file.write('changed\n')
        functions = blocks()[1].split('# Once')[0] + blocks()[1][blocks()[1].index('# unseal'):blocks()[1].index('# At each')]
        done = self.run_block(functions, 'start\nunseal; echo "status $?"\numount measured\n'.replace('unseal;', 'set +e; unseal;'))
        self.assertNotIn('the key', done.stdout)
        self.assertNotIn('status 0', done.stdout)
        self.assertIn('status', done.stdout)


if __name__ == '__main__':
    run_tests()
