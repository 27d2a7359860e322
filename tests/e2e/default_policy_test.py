#!/usr/bin/env python3
"""The rules of a mount for which nobody names any: those in the program, wherever it lies and whoever starts it, or
/etc/imafs/default.policy. In a mount namespace of its own, with an /etc of its own."""
import os
import shutil
import subprocess
import tempfile
import unittest

from mounting import IMAFS, Mount, in_private_mounts, program_for_users, run_tests, seen_within

OVERRIDE = '/etc/imafs/default.policy'
AS_NOBODY = ['setpriv', '--reuid', 'nobody', '--regid', 'nogroup', '--clear-groups']


def write(path, text):
    with open(path, 'w') as file:
        file.write(text)


def answer(*words):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def remove_override():
    shutil.rmtree(os.path.dirname(OVERRIDE), ignore_errors=True)


class DefaultPolicy(unittest.TestCase):
    def setUp(self):
        remove_override()
        self.addCleanup(remove_override)

    def override(self, text):
        os.makedirs(os.path.dirname(OVERRIDE), exist_ok=True)
        write(OVERRIDE, text)

    def measured(self, user=None, **options):
        """What a mount without --policy says of its rules, and the names in its log after /f was read."""
        with Mount('--tpm', 'none', user=user, **options) as mount:
            write(mount.backing + '/f', 'content')
            done = subprocess.run([*(AS_NOBODY if user else []), 'cat', mount.path + '/f'], stdout=subprocess.PIPE, check=True)
            self.assertEqual(b'content', done.stdout)
            look = subprocess.run([*(AS_NOBODY if user else []), 'cat', mount.path + '/.ima/status', mount.path + '/.ima/measurements'],
                                  stdout=subprocess.PIPE, text=True, check=True).stdout
            self.assertEqual(1, seen_within(lambda: len(self.said(mount)), 1, 10))  # messages are written later than they are said
            return look.split('"policy": "')[1].split('"')[0], self.said(mount)[0], ' /f\n' in look

    def said(self, mount):
        with open(mount.messages) as messages:
            return [line.split('policy: ')[1].strip() for line in messages if 'policy: ' in line]

    def test_it_is_in_the_program(self):
        self.assertEqual(('builtin:default', 'builtin:default (4 rules)', True), self.measured())
        shown = answer(IMAFS, 'policy', 'show', 'builtin:default')
        self.assertEqual((0, 4), (shown[0], shown[1].count('\n')))
        self.assertEqual(shown, answer(IMAFS, 'policy', 'show'))
        self.assertEqual((0, 'builtin:default: 4 rules\n', ''), answer(IMAFS, 'policy', 'check'))
        self.assertIn('(builtin:default:', answer(IMAFS, 'policy', 'explain', '/x')[1])

    def test_it_is_in_a_copy_that_a_plain_user_runs_and_a_file_beside_that_is_not_looked_for(self):
        with tempfile.TemporaryDirectory(prefix='imafs-e2e-') as work:
            os.chmod(work, 0o777)
            write(work + '/default.policy', 'dont_measure\n')
            program_for_users(work)
            self.assertEqual(('builtin:default', 'builtin:default (4 rules)', True), self.measured(user='nobody', work=work))
            self.assertIn('(builtin:default:', answer(work + '/imafs', 'policy', 'explain', '/x')[1])

    def test_a_load_adds_to_it_as_to_a_file_s(self):
        for text in (None, 'measure func=FILE_CHECK mask=MAY_READ\n'):
            if text:
                self.override(text)
            with Mount('--tpm', 'none') as mount:
                before = mount.control('policy')
                write(mount.path + '/.ima/policy', 'dont_measure func=BPRM_CHECK\n')
                self.assertEqual(before + b'dont_measure func=BPRM_CHECK \n', mount.control('policy'))

    def test_etc_overrides_it(self):
        self.override('measure func=FILE_CHECK path=/other\n')
        for user in (None, 'nobody'):
            self.assertEqual((OVERRIDE, OVERRIDE + ' (1 rules)', False), self.measured(user=user))
        self.assertEqual((0, OVERRIDE + ': 1 rules\n', ''), answer(IMAFS, 'policy', 'check'))
        self.assertEqual((0, 'measure func=FILE_CHECK path=/other \n', ''), answer(IMAFS, 'policy', 'show'))
        self.assertIn(f'({OVERRIDE}:1)', answer(IMAFS, 'policy', 'explain', '/other')[1])
        self.assertEqual(4, answer(IMAFS, 'policy', 'show', 'builtin:default')[1].count('\n'))
        # What is named counts, whatever is there.
        with Mount('--tpm', 'none', '--policy', 'builtin:default') as mount:
            self.assertEqual((4, 'builtin:default'), (mount.status()['policy']['rules'], mount.status()['options']['policy']))

    def test_an_override_that_cannot_be_used_is_never_replaced_silently(self):
        directory = os.path.dirname(OVERRIDE)
        faults = {
            'wrong': (None, ':1:', lambda: self.override('measure func=FILE_CHEK\n')),
            'a directory': (None, 'not a regular file', lambda: os.makedirs(OVERRIDE)),
            'a FIFO': (None, 'not a regular file', lambda: (os.makedirs(directory), os.mkfifo(OVERRIDE))),
            'a device': (None, 'not a regular file', lambda: (os.makedirs(directory), os.symlink('/dev/null', OVERRIDE))),
            'a link to nothing': (None, 'No such file', lambda: (os.makedirs(directory), os.symlink('none', OVERRIDE))),
            'a link to itself': (None, 'Too many levels', lambda: (os.makedirs(directory), os.symlink('default.policy', OVERRIDE))),
            'unreadable': ('nobody', 'Permission denied', lambda: (self.override('measure\n'), os.chmod(OVERRIDE, 0o600))),
            'out of reach': ('nobody', 'Permission denied', lambda: (self.override('measure\n'), os.chmod(directory, 0o700))),
        }
        for fault, (user, word, make) in faults.items():
            with self.subTest(fault=fault):
                remove_override()
                make()
                mount = Mount('--tpm', 'none', user=user)
                self.addCleanup(mount.__exit__)
                done = mount.start(check=False)
                self.assertEqual(5, done.returncode, done.stderr)
                self.assertIn(word, done.stderr)
                self.assertIn(OVERRIDE, done.stderr)
                self.assertFalse(os.path.ismount(mount.path))
                prefix = AS_NOBODY if user else []
                for words in (('explain', '/x'), ('show',), ('check',)):
                    status, out, error = answer(*prefix, mount.program, 'policy', *words)
                    self.assertNotEqual(0, status, words)
                    self.assertEqual('', out, words)
                    self.assertIn(OVERRIDE, error, words)

    def test_run_takes_it_too(self):
        for text, want in ((None, 0), ('measure func=FILE_CHEK\n', 5)):
            if text:
                self.override(text)
            done = subprocess.run([IMAFS, 'run', '--tpm', 'none', '--', 'true'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self.assertEqual(want == 0, done.returncode == 0, done.stderr)


if __name__ == '__main__':
    in_private_mounts()
    with tempfile.TemporaryDirectory(prefix='imafs-e2e-') as etc:
        subprocess.run(['cp', '-a', '/etc/.', etc], check=True)
        subprocess.run(['mount', '--bind', etc, '/etc'], check=True)
        try:
            run_tests()
        finally:
            subprocess.run(['umount', '-l', '/etc'], check=True)
