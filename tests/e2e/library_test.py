#!/usr/bin/env python3
"""The program in docs/LIBRARY.md compiles against libimafs_core and judges as it says."""
import glob
import os
import re
import subprocess
import unittest

from mounting import IMAFS, Mount, run_tests
from tools_test import fill

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Library(unittest.TestCase):
    def test_the_example(self):
        with Mount() as mount:
            with open(ROOT + '/docs/LIBRARY.md') as document:
                program = re.search(r'```c\+\+\n(.*?)```', document.read(), re.DOTALL)[1]
            with open(mount.work + '/check.cpp', 'w') as file:
                file.write(program)
            prefix = mount.work + '/prefix'
            subprocess.run(['cmake', '--install', os.path.dirname(IMAFS), '--prefix', prefix], check=True, stdout=subprocess.DEVNULL)
            with open(mount.work + '/CMakeLists.txt', 'w') as file:
                file.write('cmake_minimum_required(VERSION 3.25)\nproject(check CXX)\nfind_package(imafs_core 0.1 REQUIRED)\n'
                           'add_executable(by_cmake check.cpp)\ntarget_link_libraries(by_cmake PRIVATE imafs::imafs_core)\n')
            subprocess.run(f'cmake -S . -B built -DCMAKE_PREFIX_PATH={prefix} && cmake --build built', cwd=mount.work, shell=True, check=True, stdout=subprocess.DEVNULL)
            found, = glob.glob(prefix + '/lib/**/pkgconfig', recursive=True)
            subprocess.run('g++ -Wall -Werror -o check check.cpp $(pkg-config --define-prefix --cflags --libs imafs_core)', cwd=mount.work, shell=True, check=True,
                           env={**os.environ, 'PKG_CONFIG_PATH': found})
            fill(mount, 3)
            pcrs = subprocess.run(['tpm2_pcrread', '-T', f'swtpm:path={mount.state}/tpm/sock', 'sha256:10'], check=True, stdout=subprocess.PIPE).stdout
            log = mount.control('binary_runtime_measurements')

            def check(log, pcrs):
                for name, data in (('log', log), ('pcrs', pcrs)):
                    with open(f'{mount.work}/{name}', 'wb') as file:
                        file.write(data)
                one, other = (subprocess.run([program, 'log', 'pcrs'], cwd=mount.work, stdout=subprocess.PIPE, text=True) for program in ('./check', './built/by_cmake'))
                self.assertEqual((one.returncode, one.stdout), (other.returncode, other.stdout))
                return one
            good = check(log, pcrs)
            self.assertEqual((0, '/f2'), (good.returncode, good.stdout.splitlines()[-2]))
            self.assertEqual(1, check(log[:60] + bytes([log[60] ^ 1]) + log[61:], pcrs).returncode)
            self.assertEqual(1, check(log[:-1], pcrs).returncode)


if __name__ == '__main__':
    run_tests()
