#!/usr/bin/env python3
"""What commands write: never through links of others, never half and with exit status 0; and the lines of an interrupted manifest."""
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from mounting import IMAFS, Mount, private_mounts_refused, run_tests, skip_part
from tools_test import fill

NOBODY = 65534
NONCE = '00' * 20


def imafs(*words, **more):
    return subprocess.run([IMAFS, *words], stdout=more.pop('stdout', subprocess.PIPE), stderr=subprocess.PIPE, text=True, timeout=60, **more)


class Places(unittest.TestCase):
    """In a directory that others may write, names that could be known before are taken by links to a file of root's."""

    def test_what_a_link_of_another_user_leads_to_stays_as_it_is(self):
        with Mount() as mount:
            fill(mount, 1)
            precious = mount.work + '/precious'
            commands = {'manifest': lambda out: ('manifest', mount.backing, '-o', out), 'keylime': lambda out: ('manifest', mount.backing, '--format', 'keylime', '-o', out),
                        'report': lambda out: ('report', mount.path, '-o', out), 'run': lambda out: ('run', '--attest', out, '--', 'true'),
                        'quote': lambda out: ('quote', mount.path, '--nonce', NONCE, '-o', os.path.dirname(out))}
            if private_mounts_refused():
                del commands['run']
                skip_part('imafs run', private_mounts_refused())
            for command, words in commands.items():
                name = 'quote.msg' if command == 'quote' else 'out'
                for planted in (name, name + '.new', name + '.tmp', name + '.partial'):
                    for kind in ('symlink', 'chain', 'dangling', 'hard link'):
                        with self.subTest(command=command, planted=planted, kind=kind):
                            place = tempfile.mkdtemp(dir=mount.work)
                            os.chmod(place, 0o777)
                            with open(precious, 'w') as file:
                                file.write('precious')
                            missing = mount.work + '/missing'
                            if kind == 'hard link':
                                os.link(precious, f'{place}/{planted}')
                            else:
                                target = precious if kind == 'symlink' else missing if kind == 'dangling' else place + '/second'
                                os.symlink(target, f'{place}/{planted}')
                                os.symlink(precious, place + '/second')
                                for link in (f'{place}/{planted}', place + '/second'):
                                    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
                            done = imafs(*words(f'{place}/{name}'), cwd=place)
                            with open(precious) as file:
                                self.assertEqual('precious', file.read())
                            self.assertFalse(os.path.lexists(missing))
                            refused = planted == name and kind != 'hard link'
                            self.assertEqual(2 if refused else 0, done.returncode, done.stderr)
                            if refused:
                                self.assertIn('a link that another user made', done.stderr)

    def test_a_link_of_ones_own_and_an_open_file_are_written_to(self):
        with Mount() as mount:
            fill(mount, 1)
            os.symlink('real', mount.work + '/link')
            self.assertEqual(0, imafs('manifest', mount.backing, '-o', mount.work + '/link').returncode)
            self.assertTrue(os.path.islink(mount.work + '/link') and os.path.getsize(mount.work + '/real') > 0)
            done = subprocess.run(['sh', '-c', '(echo before; "$0" manifest "$1" -o /dev/stdout; echo after) >"$2"', IMAFS, mount.backing, mount.work + '/all'])
            self.assertEqual(0, done.returncode)
            with open(mount.work + '/all') as file:
                lines = file.read().splitlines()
            self.assertEqual(('before', 3, 'after'), (lines[0], len(lines), lines[2]))
            self.assertEqual([], [name for name in os.listdir(mount.work) if re.search(r'\.[0-9a-f]{16}$|\.partial$', name)])


class Writing(unittest.TestCase):
    def test_an_output_that_cannot_be_written_is_no_success(self):
        with Mount() as mount:
            fill(mount, 300)
            for i in range(300):
                with open(f'{mount.path}/f{i}') as file:
                    file.read()
            commands = [('log', mount.path), *[('log', mount.path, '--format', form) for form in ('json', 'ndjson', 'csv', 'cel-json')], ('verify', mount.path, '--json'),
                        ('policy', 'show', mount.path), ('policy', 'explain', '/f1'), ('manifest', mount.backing), ('manifest', mount.backing, '--format', 'keylime'),
                        ('run', '--attest', '-', '--', 'true'), ('--help',), ('run', '--help'), ('--version',)]
            if private_mounts_refused():
                commands.remove(('run', '--attest', '-', '--', 'true'))
                skip_part('imafs run', private_mounts_refused())
            for words in commands:
                for name, opened in (('full', full_device), ('full pipe', full_pipe), ('pipe without a reader', broken_pipe)):
                    with self.subTest(words=words, output=name):
                        out = opened()
                        self.addCleanup(close_all, out)
                        done = imafs(*words, stdout=out[-1], cwd=mount.work, restore_signals=False)
                        self.assertEqual(2, done.returncode, done.stderr)
                        if words[:2] == ('run', '--attest'):  # evidence is kept
                            kept = re.search(r"^imafs: cannot write.*\nimafs: the attestation is in '(.*)'\n$", done.stderr)
                            self.assertTrue(kept, done.stderr)
                            os.unlink(kept[1])
                        else:
                            self.assertRegex(done.stderr, '^$' if name.startswith('pipe') else r'^imafs: cannot write.*\n$')

    def test_a_reader_that_leaves_is_no_message(self):
        with Mount() as mount:
            fill(mount, 300)
            done = subprocess.run(['bash', '-c', '"$0" manifest "$1" | head -1 >/dev/null', IMAFS, mount.backing], stderr=subprocess.PIPE)
            self.assertEqual(b'', done.stderr)


def full_device():
    return (os.open('/dev/full', os.O_WRONLY),)


def full_pipe():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(65536))
    except BlockingIOError:
        return reader, writer


def broken_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return (writer,)


def close_all(descriptors):
    for one in descriptors:
        os.close(one)


class Interrupted(unittest.TestCase):
    def setUp(self):
        self.work = tempfile.mkdtemp(prefix='imafs-e2e-')
        self.addCleanup(shutil.rmtree, self.work)
        self.tree, self.out, self.partial = self.work + '/tree', self.work + '/out', self.work + '/out.partial'
        os.mkdir(self.tree)
        for i in range(3):
            with open(f'{self.tree}/f{i}', 'w') as file:
                file.write(str(i))
        with open(self.tree + '/z-large', 'wb') as file:
            file.truncate(1 << 40)
        time.sleep(2.1)  # younger files are not noted
        self.interrupt()

    def interrupt(self):
        """Leaves what a killed run leaves: the small files are done, the large one is not."""
        run = subprocess.Popen([IMAFS, 'manifest', self.tree, '-o', self.out])
        try:
            for _ in range(500):
                if os.path.exists(self.partial) and len(self.lines()) == 4:
                    break
                time.sleep(0.01)
        finally:
            run.send_signal(signal.SIGKILL)
            run.wait()
        os.truncate(self.tree + '/z-large', 10)
        self.assertEqual(4, len(self.lines()))
        # A digest that no file has: whoever finds it in the manifest knows that the line was believed.
        with open(self.partial) as file:
            text = file.read()
        self.marked = text.replace(hashlib.sha256(b'0').hexdigest(), 'ee' * 32)
        self.assertNotEqual(text, self.marked)
        with open(self.partial, 'w') as file:
            file.write(self.marked)

    def lines(self):
        with open(self.partial) as file:
            return file.read().splitlines()

    def made(self, *words):
        done = imafs('manifest', self.tree, '-o', self.out, *words)
        self.assertEqual(0, done.returncode, done.stderr)
        with open(self.out) as file:
            return file.read()

    def test_what_was_hashed_is_not_hashed_again(self):
        text = self.made()
        self.assertIn('ee' * 32 + '  /f0\n', text)
        self.assertIn(hashlib.sha256(bytes(10)).hexdigest() + '  /z-large\n', text)
        self.assertFalse(os.path.exists(self.partial))

    def test_a_line_is_believed_only_if_nothing_could_have_changed(self):
        def put(mode=0o600, owner=0):
            with open(self.partial, 'w') as file:
                file.write(self.marked)
            os.chmod(self.partial, mode)
            os.chown(self.partial, owner, owner)

        def plain_lines():
            with open(self.partial, 'w') as file:
                file.write('ee' * 32 + '  /f0\n')

        def elsewhere():
            os.rename(self.partial, self.work + '/elsewhere')
            os.symlink('elsewhere', self.partial)

        def touched():
            put()
            kept = os.stat(self.tree + '/f0')
            with open(self.tree + '/f0', 'w') as file:
                file.write('X')  # as long as before
            os.utime(self.tree + '/f0', ns=(kept.st_atime_ns, kept.st_mtime_ns))

        def replaced():
            put()
            shutil.copy2(self.tree + '/f0', self.work + '/copy')
            os.rename(self.work + '/copy', self.tree + '/f0')

        def another_tree():
            put()
            os.rename(self.tree, self.tree + '-old')
            shutil.copytree(self.tree + '-old', self.tree)

        rows = {'of another user': lambda: put(owner=NOBODY), 'others may write': lambda: put(0o622), 'group may write': lambda: put(0o620),
                'a second name': lambda: (put(), os.link(self.partial, self.work + '/second')), 'a link': lambda: (put(), elsewhere()),
                'no such form': plain_lines, 'a FIFO': lambda: (os.unlink(self.partial), os.mkfifo(self.partial)),
                'contents changed, times put back': touched, 'replaced': replaced, 'another tree of the same name': another_tree}
        for name, change in rows.items():
            with self.subTest(name):
                for leftover in (self.partial, self.work + '/second', self.work + '/elsewhere'):
                    if os.path.lexists(leftover):
                        os.unlink(leftover)
                put()
                change()
                self.assertNotIn('ee' * 32, self.made())
        for words in (['--hash', 'sha512'], ['--path-prefix', '/srv']):
            put()
            self.assertNotIn('ee' * 32, self.made(*words))

    def test_two_at_once_do_not_share_the_lines(self):
        with open(self.partial, 'r+') as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.assertNotIn('ee' * 32, self.made())


if __name__ == '__main__':
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # inherited by what a test starts, where it says so
    run_tests()
