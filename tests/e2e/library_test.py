#!/usr/bin/env python3
"""The program in docs/LIBRARY.md compiles against libimafs_core and judges as it says."""
import os
import re
import subprocess
import sys
import unittest

from mounting import IMAFS, Mount
from tools_test import fill

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Library(unittest.TestCase):
    def test_the_example(self):
        with Mount() as mount:
            with open(ROOT + '/docs/LIBRARY.md') as document:
                program = re.search(r'```c\+\+\n(.*?)```', document.read(), re.DOTALL)[1]
            with open(mount.work + '/check.cpp', 'w') as file:
                file.write(program)
            subprocess.run(['g++', '-std=c++20', '-Wall', '-Werror', f'-I{ROOT}/include', '-o', 'check', 'check.cpp', os.path.dirname(IMAFS) + '/libimafs_core.a', '-lcrypto'],
                           cwd=mount.work, check=True)
            fill(mount, 3)
            pcrs = subprocess.run(['tpm2_pcrread', '-T', f'swtpm:path={mount.state}/tpm/sock', 'sha256:10'], check=True, stdout=subprocess.PIPE).stdout
            log = mount.control('binary_runtime_measurements')

            def check(log, pcrs):
                for name, data in (('log', log), ('pcrs', pcrs)):
                    with open(f'{mount.work}/{name}', 'wb') as file:
                        file.write(data)
                return subprocess.run(['./check', 'log', 'pcrs'], cwd=mount.work, stdout=subprocess.PIPE, text=True)
            good = check(log, pcrs)
            self.assertEqual((0, '/f2'), (good.returncode, good.stdout.splitlines()[-2]))
            self.assertEqual(1, check(log[:60] + bytes([log[60] ^ 1]) + log[61:], pcrs).returncode)
            self.assertEqual(1, check(log[:-1], pcrs).returncode)


if __name__ == '__main__':
    if os.geteuid() != 0:
        sys.exit(77)
    unittest.main(verbosity=2)
