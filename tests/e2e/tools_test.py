#!/usr/bin/env python3
"""The tools beside the mount: exports of the log, trimming, archives."""
import csv
import glob
import io
import json
import os
import pty
import select
import subprocess
import sys
import tempfile
import time
import unittest

from mounting import IMAFS, Mount, run_tests, write_binary_log

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def tool(*words, check=0):
    done = subprocess.run([IMAFS, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
    if done.returncode != check:
        raise AssertionError(f'{words} ended with {done.returncode}: {done.stdout}{done.stderr}')
    return done.stdout + done.stderr


def fill(mount, count, first=0):
    for i in range(first, first + count):
        with open(f'{mount.backing}/f{i}', 'w') as file:
            file.write(f'file {i}')
        with open(f'{mount.path}/f{i}') as file:
            file.read()


class Exports(unittest.TestCase):
    def test_every_format_tells_the_same(self):
        with Mount() as mount:
            with open(mount.backing + '/a "quoted", name', 'w') as file:
                file.write('x')
            os.chmod(mount.work, 0o755)
            subprocess.run(['setpriv', '--reuid', '1234', '--clear-groups', 'cat', mount.path + '/a "quoted", name'], check=True,
                           stdout=subprocess.DEVNULL)
            fill(mount, 3)
            lines = mount.control('ascii_runtime_measurements_sha256').decode().splitlines()
            objects = json.loads(tool('log', mount.path, '--format', 'json'))
            self.assertEqual([line.split(' ')[1] for line in lines], [one['template_digests']['sha256'] for one in objects])
            self.assertEqual(objects, [json.loads(line) for line in tool('log', mount.path, '--format', 'ndjson').splitlines()])
            rows = list(csv.DictReader(io.StringIO(tool('log', mount.path, '--format', 'csv'))))
            self.assertEqual([one['name'] for one in objects], [row['name'] for row in rows])
            cel = json.loads(tool('log', mount.path, '--format', 'cel-json'))
            for line, record in zip(lines, cel):
                digests = {digest['hashAlg']: digest['digest'] for digest in record['digests']}
                self.assertEqual(line.split(' ')[1], digests['sha256'])
            data = bytes.fromhex(cel[-1]['content']['template_data'])
            self.assertTrue(data.endswith(b'/f2\0'))
            by_user = json.loads(tool('log', mount.path, '--format', 'json', '--uid', '1234'))
            self.assertIn(('cat', '/a_"quoted",_name'), [(one['comm'], one['name']) for one in by_user])
            self.assertEqual(3, len(tool('log', mount.path, '--path', '/f*').splitlines()))
            self.assertEqual(1, len(tool('log', mount.path, '--from', str(len(lines) - 1)).splitlines()))
            self.assertEqual('', tool('log', mount.path, '--violations'))
            self.assertEqual([], json.loads(tool('log', mount.path, '--violations', '--format', 'json')))

    def test_what_is_not_known_is_not_shown_and_a_name_cannot_draw(self):
        with Mount() as mount:
            with open(mount.backing + '/f', 'w') as file:
                file.write('x')
            program = 'import ctypes, sys; ctypes.CDLL(None).prctl(15, b"\x1b[2Jred\x7f"); open(sys.argv[1]).read()'
            subprocess.run([sys.executable, '-c', program, mount.path + '/f'], check=True)
            text = tool('log', mount.path)
            self.assertIn('?[2Jred?', text)
            self.assertNotIn('\x1b', text)
            log = mount.work + '/log'
            with open(log, 'wb') as file:
                file.write(mount.control('binary_runtime_measurements'))
            self.assertNotIn('1970', tool('log', log) + tool('log', log, '--format', 'csv'))
            self.assertEqual([''] * 5, [list(csv.DictReader(io.StringIO(tool('log', log, '--format', 'csv'))))[-1][key] for key in ('time', 'pid', 'uid', 'comm', 'size')])
            for words in (('trim', mount.path, '--keep', '-5'), (mount.path, '--from', '-1'), (mount.path, '--uid', '-1')):
                self.assertRegex(tool('log', *words, check=2), r'^imafs: .*\n$')
            with open(mount.work + '/policy', 'wb') as file:
                file.write(b'measure func=\x1b[2J\n')
            self.assertNotIn('\x1b', tool('policy', 'check', mount.work + '/policy', check=1))

    def test_a_log_that_is_followed_goes_on_over_a_trim(self):
        with Mount() as mount, tempfile.TemporaryFile('w+') as out:
            fill(mount, 2)
            following = subprocess.Popen([IMAFS, 'log', mount.path, '--follow', '--format', 'csv'], stdout=out)
            self.addCleanup(following.wait)
            self.addCleanup(following.kill)

            def indices():
                out.seek(0)
                return [row['index'] for row in csv.DictReader(out)]
            wanted = [str(i) for i in range(5)]
            for first in (2, 3):
                until = time.monotonic() + 20
                while indices() != wanted and time.monotonic() < until:
                    time.sleep(0.05)
                self.assertEqual(wanted, indices())
                tool('log', 'trim', mount.path, '--keep', '1')
                fill(mount, 1, first=first)
                wanted.append(str(len(wanted)))
            following.kill()
            following.wait()

    def test_following_shows_entries_as_they_come(self):
        with Mount() as mount:
            follower = subprocess.Popen([IMAFS, 'log', mount.path, '--follow', '--format', 'ndjson', '--path', '/f*'],
                                        stdout=subprocess.PIPE, text=True)
            try:
                for i in range(3):
                    fill(mount, 1, first=i)
                    self.assertEqual(f'/f{i}', json.loads(follower.stdout.readline())['name'])
            finally:
                follower.terminate()
                follower.wait()
                follower.stdout.close()


class Archives(unittest.TestCase):
    def test_a_trimmed_log_goes_on_and_every_part_verifies(self):
        with Mount() as mount:
            fill(mount, 20)
            self.assertIn('18 entries moved', tool('log', 'trim', mount.path, '--keep', '5'))
            self.assertEqual(['/f15', '/f16', '/f17', '/f18', '/f19'], mount.names())
            self.assertEqual(0, mount.verify().returncode)
            fill(mount, 3, first=20)
            self.assertEqual(0, mount.verify().returncode)
            self.assertIn('nothing to trim', tool('log', 'trim', mount.path, '--keep', '50'))
            # A restart over the same TPM goes on from there.
            os.kill(mount.daemon_pid(), 9)
            mount.stop()
            mount.start()
            self.assertEqual(8, len(mount.names()))
            self.assertEqual(0, mount.verify().returncode)
            found = json.loads(tool('verify', '--state', mount.state, '--json'))
            self.assertEqual([('archive/1', 'verified'), ('journal', 'incomplete')],
                             [(one['log'], one['verdict']) for one in found])
            self.assertEqual(18, len(tool('log', mount.state + '/archive/1').splitlines()))

    def test_each_mount_over_a_private_tpm_leaves_an_archive_that_verifies(self):
        mount = Mount()
        try:
            for i in range(3):
                mount.start()
                fill(mount, 2, first=2 * i)
                mount.stop()
                time.sleep(0.1)
            tool('verify', '--state', mount.state)
            # A byte in an archive's values, then in its journal.
            end = mount.state + '/archive/1/end-pcrs'
            with open(end) as file:
                good = file.read()
            with open(end, 'w') as file:
                file.write(good[:-2] + ('0' if good[-2] != '0' else '1') + '\n')
            self.assertIn('MISMATCH', tool('verify', '--state', mount.state, check=1))
            with open(end, 'w') as file:
                file.write(good)
            tool('verify', '--state', mount.state)
            segment, = glob.glob(mount.state + '/archive/2/journal.*')
            with open(segment, 'r+b') as file:
                file.seek(400)
                byte = file.read(1)
                file.seek(400)
                file.write(bytes([byte[0] ^ 1]))
            self.assertIn('archive/2', tool('verify', '--state', mount.state, check=1))
        finally:
            mount.__exit__()


class Progress(unittest.TestCase):
    def test_verify_of_a_long_log_shows_it_on_a_terminal_only(self):
        with tempfile.TemporaryDirectory(prefix='imafs-e2e-') as work:
            write_binary_log(work + '/log', 200_000)
            pid, terminal = pty.fork()
            if pid == 0:
                os.execv(IMAFS, [IMAFS, 'verify', work + '/log'])
            seen = b''
            try:
                while piece := os.read(terminal, 4096):
                    seen += piece
            except OSError:  # it ended
                pass
            os.close(terminal)
            self.assertEqual(2, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))  # nothing to compare with
            self.assertRegex(seen, rb'[0-9]+ of 1000000 steps, [0-9]+ %')
            self.assertRegex(seen, rb'incomplete: .*200000 entries')
            self.assertNotIn('steps', tool('verify', work + '/log', check=2))


class Completion(unittest.TestCase):
    def complete(self, *words):
        """What a shell offers after each of the lines."""
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=60,
                              cwd=ROOT, env={'PATH': os.path.dirname(IMAFS) + ':' + os.environ['PATH'], 'HOME': '/nonexistent'})
        return done.stdout.split()

    def test_bash(self):
        source = 'source conf/completions/imafs.bash; COMP_WORDS=(imafs %s); COMP_CWORD=%d; _imafs; echo "${COMPREPLY[@]}"'
        for line, place, wanted in (('rep', 1, 'report'), ('verify --pcr', 2, '--pcr-values'), ('run --format sl', 3, 'slsa'), ('policy ex', 2, 'explain')):
            self.assertIn(wanted, self.complete('bash', '-c', source % (line, place)))

    def test_fish(self):
        for line, wanted in (('rep', 'report'), ('verify --pcr', '--pcr-values'), ('run --format sl', 'slsa'), ('policy ex', 'explain')):
            self.assertIn(wanted, self.complete('fish', '--no-config', '-c', f'source conf/completions/imafs.fish; complete -C "imafs {line}"'))

    def test_zsh(self):
        for line, wanted in (('rep', 'report'), ('verify --pcr', '--pcr-values'), ('run --format sl', 'slsa'), ('policy ex', 'explain')):
            # A real line editor: type, press tab, print what stands on the line.
            script = (f'zmodload zsh/zpty; zpty shell zsh -f -i; zpty -w shell "PS1=; fpath=(\\$PWD/conf/completions \\$fpath); autoload -U compinit; compinit -u -D; '
                      f'cat >/dev/null <<<x"; sleep 1; zpty -w -n shell "imafs {line}"$\'\\t\'; sleep 1; zpty -w -n shell $\'\\x01echo \\n\'; sleep 1; '
                      'repeat 50 { zpty -r -t shell text || break; print -r -- $text }')
            self.assertTrue(any(wanted in word for _ in range(3) for word in self.complete('zsh', '-f', '-c', script)), line)


class Top(unittest.TestCase):
    def test_it_shows_what_happens_and_ends_with_q_or_the_mount(self):
        with Mount() as mount:
            for ending in ('q', '\x03 ', 'umount'):
                pid, terminal = pty.fork()
                if pid == 0:
                    os.environ.update(TERM='xterm', LINES='30', COLUMNS='120', LANG='C.UTF-8')
                    os.execv(IMAFS, [IMAFS, 'top', mount.path, '--interval', '0.2'])
                seen = b''

                def wait_for(text):
                    nonlocal seen
                    until = time.monotonic() + 20
                    while text not in seen and time.monotonic() < until:
                        if select.select([terminal], [], [], 0.1)[0]:
                            seen += os.read(terminal, 65536)
                    self.assertIn(text, seen)
                wait_for(b'replays to the PCR')
                wait_for(b'sha256:10 ')
                fill(mount, 1, first=len(ending))
                wait_for(b'/f%d' % len(ending))
                wait_for(b'an extend')
                if ending != 'umount':
                    os.write(terminal, ending.encode())
                else:
                    mount.stop()
                until = time.monotonic() + 10
                done = (0, 0)
                while done[0] == 0 and time.monotonic() < until:
                    if select.select([terminal], [], [], 0.05)[0]:
                        try:
                            os.read(terminal, 65536)
                        except OSError:
                            pass
                    done = os.waitpid(pid, os.WNOHANG)
                self.assertEqual((pid, 0), done)
                os.close(terminal)
        tool('top', '/no/such', check=2)


if __name__ == '__main__':
    run_tests()
