#!/usr/bin/env python3
"""path= rules and names in the log, where a file has several names, or another one than a moment ago: what might have been opened by a
name that is measured is measured; what has only names that are left out is not."""
import hashlib
import os
import subprocess
import sys
import time
import unittest

from mounting import Mount, run_tests

POLICIES = {'left-out': 'dont_measure path=/free/**\nmeasure func=FILE_CHECK mask=^MAY_READ\n', 'asked-for': 'measure func=FILE_CHECK mask=^MAY_READ path=/meas/**\n'}
# Another process, which the kernel need not ask about names that it knows. In a directory that it entered before, if one is given.
READER = 'import os, sys; os.chdir(sys.argv[1]); print(flush=True); sys.stdin.readline(); sys.stdout.buffer.write(open(sys.argv[2], "rb").read())'


class Reader:
    def __init__(self, directory, name):
        self.process = subprocess.Popen([sys.executable, '-c', READER, directory, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdout.readline()

    def read(self):
        return self.process.communicate(b'\n')[0]


def link_outside(mount, name):
    os.link(f'{mount.backing}/meas/{name}', f'{mount.backing}/free/{name}')
    time.sleep(0.3)
    os.stat(f'{mount.path}/free/{name}')
    return Reader(mount.path, f'meas/{name}')


def link_through_the_mount(mount, name):
    os.link(f'{mount.path}/meas/{name}', f'{mount.path}/free/{name}')
    os.stat(f'{mount.path}/free/{name}')
    return Reader(mount.path, f'meas/{name}')


def many_links(mount, name):
    os.stat(f'{mount.path}/meas/{name}')
    for i in range(200):
        os.link(f'{mount.backing}/meas/{name}', f'{mount.backing}/free/{name}.{i}')
        os.stat(f'{mount.path}/free/{name}.{i}')
    return Reader(mount.path, f'meas/{name}')


def link_that_nobody_looked_up(mount, name):
    """Opened by the name that is left out; the other one is not known to the mount."""
    os.rename(f'{mount.backing}/meas/{name}', f'{mount.backing}/free/{name}')
    os.link(f'{mount.backing}/free/{name}', f'{mount.backing}/meas/{name}')
    return Reader(mount.path, f'free/{name}')


def directory_moved_outside(mount, name):
    os.mkdir(f'{mount.backing}/free/{name}.d')
    os.rename(f'{mount.backing}/meas/{name}', f'{mount.backing}/free/{name}.d/{name}')
    reader = Reader(f'{mount.path}/free/{name}.d', name)
    os.stat(f'{mount.path}/free/{name}.d/{name}')
    os.rename(f'{mount.backing}/free/{name}.d', f'{mount.backing}/meas/{name}.d')
    time.sleep(0.3)
    return reader


def directory_above_moved_through_the_mount(mount, name):
    """Looked up by the name that is measured; when it is opened, it has the other one."""
    os.makedirs(f'{mount.path}/meas/{name}.d/below')
    os.rename(f'{mount.path}/meas/{name}', f'{mount.path}/meas/{name}.d/below/{name}')
    reader = Reader(f'{mount.path}/meas/{name}.d/below', name)
    os.stat(f'{mount.path}/meas/{name}.d/below/{name}')
    os.rename(f'{mount.path}/meas/{name}.d', f'{mount.path}/free/{name}.d')
    return reader


def renamed_through_the_mount(mount, name):
    descriptor = os.open(f'{mount.path}/meas/{name}', os.O_PATH)  # as an open that has found it and is not yet here
    os.rename(f'{mount.path}/meas/{name}', f'{mount.path}/free/{name}')
    return Reader(mount.path, f'/proc/{os.getpid()}/fd/{descriptor}')


WAYS = (link_outside, link_through_the_mount, many_links, link_that_nobody_looked_up, directory_moved_outside, directory_above_moved_through_the_mount, renamed_through_the_mount)


class PathRules(unittest.TestCase):
    def mount(self, rules, *options):
        mount = Mount('--tpm', 'none', *options)
        self.addCleanup(mount.__exit__)
        with open(mount.work + '/policy', 'w') as policy:
            policy.write(rules)
        mount.options += ['--policy', mount.work + '/policy']
        for name in ('meas', 'free'):
            os.mkdir(f'{mount.backing}/{name}')
        mount.start()
        return mount

    def test_what_may_have_a_measured_name_is_measured(self):
        for policy, rules in POLICIES.items():
            mount = self.mount(rules)
            for way in WAYS:
                with self.subTest(policy=policy, way=way.__name__):
                    content = os.urandom(100)
                    with open(f'{mount.backing}/meas/{way.__name__}', 'wb') as file:
                        file.write(content)
                    reader = way(mount, way.__name__)
                    self.assertEqual(content, reader.read())
                    self.assertIn('sha256:' + hashlib.sha256(content).hexdigest(), [digest.decode() for digest, name in mount.log()])

    def test_what_has_only_names_that_are_left_out_is_not(self):
        mount = self.mount(POLICIES['left-out'])
        for name in ('new', 'renamed', 'linked'):
            with open(f'{mount.path}/free/{name}', 'w') as file:
                file.write(name)
        os.rename(mount.path + '/free/renamed', mount.path + '/free/renamed.1')
        os.link(mount.path + '/free/linked', mount.path + '/free/linked.1')
        for name in ('new', 'renamed.1', 'linked.1', 'linked'):
            with open(f'{mount.path}/free/{name}') as file:
                file.read()
        self.assertEqual([], [name for name in mount.names() if name.startswith('/free')])

    def test_no_depth_hides_the_beginning(self):
        mount = self.mount('dont_measure path=/**/free/**\nmeasure func=FILE_CHECK mask=^MAY_READ path=/meas/**\n')
        done = subprocess.run([sys.executable, '-c', 'import os\nfor _ in range(4100):\n os.mkdir("d"); os.chdir("d")\nopen("file","w").write("x")\nopen("file").read()'],
                              cwd=mount.path + '/meas', stderr=subprocess.PIPE, text=True)
        self.assertEqual('', done.stderr)
        names = mount.names()
        subprocess.run(['rm', '-rf', mount.backing + '/meas'])
        self.assertEqual(1, len(names))

    def test_a_long_path_passes_for_no_other_name(self):
        for template in ('ima-ng', 'ima'):
            mount = self.mount('measure func=FILE_CHECK mask=^MAY_READ\n', '--template', template, *(['--hash', 'sha1'] if template == 'ima' else []))
            script = ('import os, sys\nfor name in ("one", "two"):\n os.chdir(sys.argv[1]); os.mkdir(name); os.chdir(name)\n'
                      ' for _ in range(20):\n  os.mkdir("d" * 250); os.chdir("d" * 250)\n'
                      ' for file in ("boot_aggregate", "two words"):\n  open(file, "w").write(name + file); open(file).read()\n')
            subprocess.run([sys.executable, '-c', script, mount.path], check=True)
            lines = [line.split(' ', 4)[4] for line in mount.control('measurements').decode().splitlines() if ' ima-buf ' not in line]
            self.assertEqual(5, len(lines), lines)
            self.assertEqual(1, lines.count('boot_aggregate'))
            # What could pass for the beginning of a log says which path it is; else the last component, as the kernel's.
            named = [line for line in lines[1:] if line not in ('two_words', 'two words')]
            self.assertEqual(2, len(set(named)), lines)
            for name in named:
                self.assertRegex(name, '^//%sha256:[0-9a-f]{64}/boot_aggregate$')
            subprocess.run(f'cd {mount.backing} && rm -rf one two', shell=True)


if __name__ == '__main__':
    run_tests()
