"""What the log holds, who agrees with it, and when: on a real mount with a swtpm."""
import ctypes
import hashlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import unittest

from mounting import IMAFS, Mount, known, run_tests


def write(path, text):
    with open(path, 'wb') as file:
        file.write(text)


def read(path):
    with open(path, 'rb') as file:
        return file.read()


def evmctl_pcrs(mount):
    """Options for evmctl: files of what tpm2_pcrread says. It counts lines: the n-th is PCR n."""
    tcti, words = mount.status()['options']['tcti'], []
    for bank in ('sha1', 'sha256'):
        listing = subprocess.run(['tpm2_pcrread', '-T', tcti, bank], check=True, stdout=subprocess.PIPE, text=True).stdout
        values = [line.split('0x')[1].strip() for line in listing.split('\n') if '0x' in line]
        write(f'{mount.work}/{bank}', ''.join(f'PCR-{i:02d}: {value}\n' for i, value in enumerate(values)).encode())
        words += ['--pcrs', f'{bank},{mount.work}/{bank}']
    return words


class Measuring(unittest.TestCase):
    def test_an_exec_logs_the_program_its_loader_and_libraries_once(self):
        with Mount(backing='/') as mount:
            command = ['chroot', mount.path, '/bin/sh', '-c', 'ls /etc >/dev/null']
            subprocess.run(command, check=True)
            names = mount.names()
            for wanted in ('/usr/bin/dash', '/usr/bin/ls', 'ld-linux', 'libc.so.6', 'libselinux'):
                self.assertEqual(1, sum(wanted in name for name in names), (wanted, names))
            self.assertEqual(len(names), len(set(names)))
            subprocess.run(command, check=True)
            self.assertEqual(names, mount.names())

    def test_entries_say_what_the_thread_was_called_then(self):
        with Mount() as mount:
            names = [f'name{i}' for i in range(60)]
            for name in names:
                write(f'{mount.path}/{name}', name.encode())
            for own in (names[at:at + 3] for at in range(0, len(names), 3)):  # each process has three names
                reads = ''.join(f"open('/proc/self/comm', 'w').write('{name}'); open('{mount.path}/{name}').read();" for name in own)
                subprocess.run(['python3', '-c', reads], check=True)
            listing = subprocess.run([IMAFS, 'log', mount.path, '--format', 'ndjson'], check=True, stdout=subprocess.PIPE, text=True).stdout
            entries = [json.loads(line) for line in listing.splitlines()]
            self.assertEqual([('/' + name, name) for name in names], [(entry['name'], entry['comm']) for entry in entries if entry['name'][1:] in names])

    def test_a_new_link_does_not_rename_a_file_that_is_opened_by_its_old_name(self):
        with Mount() as mount:
            wanted = []
            for i in range(200):
                write(f'{mount.path}/f{i}', b'%d' % i)
                os.link(f'{mount.path}/f{i}', f'{mount.path}/link{i}')
                read(f'{mount.path}/f{i}')
                wanted.append(f'/f{i}')
            self.assertEqual(wanted, mount.names())

    def test_evmctl_and_tpm2_tools_agree_and_a_flipped_byte_is_found(self):
        with Mount() as mount:
            for i in range(20):
                write(f'{mount.backing}/f{i}', b'%d' % i)
                read(f'{mount.path}/f{i}')
            pcrs = evmctl_pcrs(mount)
            log = f'{mount.work}/log'
            write(log, mount.control('binary_runtime_measurements'))

            def judges():
                evmctl = subprocess.run(['evmctl', 'ima_measurement', *pcrs, log], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                with open(f'{mount.work}/both', 'wb') as both:
                    both.write(read(f'{mount.work}/sha1') + read(f'{mount.work}/sha256'))
                from mounting import IMAFS
                ours = subprocess.run([IMAFS, 'verify', log, '--pcr-values', f'{mount.work}/both'], stdout=subprocess.PIPE)
                return evmctl.returncode, ours.returncode

            self.assertEqual((0, 0), judges())
            self.assertEqual(0, mount.verify().returncode)
            damaged = bytearray(read(log))
            damaged[len(damaged) // 2] ^= 1
            write(log, damaged)
            evmctl, ours = judges()
            self.assertNotEqual(0, evmctl)
            self.assertEqual(1, ours)

    def test_no_byte_is_read_before_its_entry_stands_in_log_and_pcr(self):
        with Mount() as mount:
            write(mount.backing + '/f', b'secret')
            time.sleep(0.1)  # the connection to the TPM is given up meanwhile
            before = mount.control('runtime_measurements_count')
            got = []
            os.kill(mount.swtpm_pid(), signal.SIGSTOP)
            try:
                reader = threading.Thread(target=lambda: got.append(read(mount.path + '/f')))
                reader.start()
                reader.join(0.5)
                self.assertTrue(reader.is_alive(), 'the open came back while the TPM had not answered')
                self.assertEqual([], got)
                self.assertEqual(before, mount.control('runtime_measurements_count'))
            finally:
                os.kill(mount.swtpm_pid(), signal.SIGCONT)
            reader.join(10)
            self.assertEqual([b'secret'], got)
            self.assertEqual(1, mount.names().count('/f'))
            self.assertEqual(0, mount.verify().returncode)

    def test_many_threads_one_entry_for_each_state(self):
        with Mount() as mount:
            for i in range(5000):
                write(f'{mount.backing}/f{i}', b'content %d' % i)
            failures = []

            def reader(number):
                for i in range(number, 5000, 8):  # each file is opened by two threads
                    if read(f'{mount.path}/f{i}') != b'content %d' % i:
                        failures.append(i)

            def rewriter():
                for i in range(200):
                    write(mount.path + '/changing', b'state %d' % i)
                    read(mount.path + '/changing')

            threads = [threading.Thread(target=reader, args=(n % 8,)) for n in range(16)] + [threading.Thread(target=rewriter)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual([], failures)
            log = mount.log()
            stable = [entry for entry in log if entry[1] != b'/changing']
            expected = {(b'sha256:' + hashlib.sha256(b'content %d' % i).hexdigest().encode(), b'/f%d' % i) for i in range(5000)}
            self.assertEqual(5000, len(stable))
            self.assertEqual(expected, set(stable))
            # A close(2) whose RELEASE takes longer than 50 ms to arrive counts as a writer, and is a violation: not a state.
            states = [digest for digest, name in log if name == b'/changing' and not digest.endswith(b'0' * 64)]
            self.assertEqual([b'sha256:' + hashlib.sha256(b'state %d' % i).hexdigest().encode() for i in range(200)], states)
            self.assertEqual(0, mount.verify().returncode)

    def test_after_a_crash_the_log_goes_on_and_verifies(self):
        with Mount() as mount:
            write(mount.backing + '/a', b'a')
            write(mount.backing + '/b', b'b')
            read(mount.path + '/a')
            os.kill(mount.daemon_pid(), signal.SIGKILL)
            mount.stop()
            mount.start()
            self.assertEqual(['/a'], mount.names())
            read(mount.path + '/a')  # hashed again, and known
            read(mount.path + '/b')
            self.assertEqual(['/a', '/b'], mount.names())
            self.assertEqual(0, mount.verify().returncode)

    def test_a_clean_unmount_ends_the_private_tpm_and_the_next_mount_is_a_boot(self):
        with Mount() as mount:
            write(mount.backing + '/a', b'a')
            read(mount.path + '/a')
            swtpm = mount.swtpm_pid()
            mount.stop()
            self.assertFalse(os.path.exists(mount.state + '/tpm/pid'))
            self.assertNotIn(b'swtpm', read_or_empty(f'/proc/{swtpm}/cmdline'))
            mount.start()
            self.assertEqual([], mount.names())
            self.assertTrue(os.path.exists(mount.state + '/archive/1/end-pcrs'))
            self.assertEqual(0, mount.verify().returncode)

    def test_a_writer_beside_the_mount_leaves_a_violation(self):
        with Mount() as mount:
            write(mount.backing + '/f', b'old')
            with open(mount.path + '/f', 'rb') as reader:
                reader.read()
                start = time.monotonic()
                write(mount.backing + '/f', b'new')
                waited = time.monotonic() - start
            self.assertEqual(b'1\n', mount.control('violations'))
            self.assertLess(waited, 0.5)
            self.assertEqual(b'new', read(mount.path + '/f'))
            digests = [digest for digest, name in mount.log() if name == b'/f']
            self.assertEqual(3, len(digests))  # old, the violation, new
            self.assertEqual(0, mount.verify().returncode)

    def test_every_writer_beside_the_mount_is_noticed_not_only_the_first(self):
        with Mount() as mount:
            for i in range(5):
                write(mount.backing + '/file', b'state %d' % i)
                with open(mount.path + '/file', 'rb') as file:
                    self.assertEqual(b'state %d' % i, file.read())
                    with open(mount.backing + '/file', 'r+b') as beside:
                        beside.write(b'other')
            self.assertEqual(5, int(mount.control('violations')))
            self.assertEqual(0, mount.verify().returncode)

    def test_a_writer_beside_the_mount_after_one_of_the_mount_is_no_part_of_its_phase(self):
        for flags in (os.O_WRONLY, os.O_RDWR):
            for options in ([], ['--no-passthrough']):
                with self.subTest(flags=flags, options=options), Mount(*options) as mount:
                    write(mount.backing + '/f', b'one')
                    self.assertEqual(b'one', read(mount.path + '/f'))
                    fd = os.open(mount.path + '/f', flags)
                    os.write(fd, b'two')
                    os.close(fd)
                    mount.settle()
                    time.sleep(0.05)  # whether a mapping lives on is looked at then
                    with open(mount.backing + '/f', 'r+b', buffering=0) as beside:
                        beside.write(b'six')
                        self.assertEqual(b'six', read(mount.path + '/f'))
                    self.assertEqual(b'1\n', mount.control('violations'))
                    self.assertIn((b'sha256:' + hashlib.sha256(b'six').hexdigest().encode(), b'/f'), mount.log())

    def test_o_direct_logs_zeros_but_not_for_what_is_measured(self):
        with Mount() as mount:
            for name in ('measured', 'fresh'):
                write(f'{mount.backing}/{name}', b'x' * 4096)
            read(mount.path + '/measured')
            os.chmod(mount.path + '/measured', 0o600)  # moves ctime, not the content
            with known(mount.path + '/measured'):
                time.sleep(2.5)  # the lease goes: only time stamps are left
                for name in ('measured', 'fresh', 'fresh'):
                    os.close(os.open(f'{mount.path}/{name}', os.O_RDONLY | os.O_DIRECT))
            zeros = b'sha256:' + b'0' * 64
            content = b'sha256:' + hashlib.sha256(b'x' * 4096).hexdigest().encode()
            self.assertEqual([(content, b'/measured'), (zeros, b'/fresh')], mount.log())
            read(mount.path + '/fresh')
            self.assertEqual((content, b'/fresh'), mount.log()[-1])
            write(mount.backing + '/measured', b'y' * 4096)
            os.close(os.open(mount.path + '/measured', os.O_RDONLY | os.O_DIRECT))
            self.assertEqual((zeros, b'/measured'), mount.log()[-1])

    def test_field_d_is_in_the_hash_of_the_mount_where_it_can(self):
        with Mount('--hash', 'md5', '--template-fmt', 'd|d-ng|n-ng') as mount:
            write(mount.backing + '/f', b'text')
            os.setxattr(mount.backing + '/f', 'security.ima', bytes([4, 4]) + bytes(32))
            read(mount.path + '/f')
            line = mount.control('measurements').split(b'\n')[-2].split(b' ')
            self.assertEqual([hashlib.md5(b'text').hexdigest(), 'sha256:' + hashlib.sha256(b'text').hexdigest()],
                             [word.decode() for word in line[3:5]])

    def test_xattr_fields_count_what_is_there_and_an_appended_signature_is_not_looked_for(self):
        trailer = bytes(100) + bytes([0, 0, 2, 0, 0, 0, 0, 0]) + (100).to_bytes(4, 'big') + b'~Module signature appended~\n'
        with Mount('--template-fmt', 'd-ng|n-ng|xattrnames|xattrlengths|xattrvalues|d-modsig|modsig') as mount:
            write(mount.backing + '/f', b'text' + trailer)
            os.setxattr(mount.backing + '/f', 'security.SMACK64', b'')
            os.setxattr(mount.backing + '/f', 'security.ima', b'\x04\x04' + bytes(32))
            read(mount.path + '/f')
            line = mount.control('measurements').split(b'\n')[-2]
            digest = hashlib.sha256(b'text' + trailer).hexdigest()
            self.assertTrue(line.endswith(f'sha256:{digest} /f security.SMACK64|security.ima 0000000022000000 0404{"00" * 32}  '.encode()), line)
            self.assertEqual(0, mount.verify().returncode)

    def test_without_a_reader_a_writer_beside_the_mount_is_no_violation(self):
        with Mount() as mount:
            write(mount.backing + '/f', b'old')
            read(mount.path + '/f')
            mount.settle()
            write(mount.backing + '/f', b'new')
            self.assertEqual(b'new', read(mount.path + '/f'))
            self.assertEqual(b'0\n', mount.control('violations'))
            self.assertEqual(2, len(mount.log()))

    def test_more_files_than_we_keep_descriptors_of_have_no_readers_once_they_are_closed(self):
        with Mount('--tpm', 'none') as mount:
            os.mkdir(mount.backing + '/many')
            for i in range(1700):
                write(f'{mount.backing}/many/{i}', b'%d' % i)
            for _ in range(2):
                for i in range(1700):
                    read(f'{mount.path}/many/{i}')
            mount.settle()
            for i in range(0, 1700, 7):
                write(f'{mount.path}/many/{i}', b'new')
            self.assertEqual(b'0', mount.control('violations').strip())

    def test_a_dirty_mapping_beside_the_mount_is_caught(self):
        import mmap
        with Mount() as mount:
            write(mount.backing + '/f', b'a' * 4096)
            with open(mount.backing + '/f', 'r+b') as file:
                mapping = mmap.mmap(file.fileno(), 4096)
                mapping[0:1] = b'b'  # dirty: from here on stores move no time stamp
            self.assertEqual(b'b' + b'a' * 4095, read(mount.path + '/f'))
            self.assertEqual(b'1\n', mount.control('violations'))
            mapping[1:2] = b'c'
            self.assertEqual(b'bc', read(mount.path + '/f')[:2])
            states = {digest for digest, name in mount.log() if name == b'/f'}
            self.assertIn(b'sha256:' + hashlib.sha256(b'bc' + b'a' * 4094).hexdigest().encode(), states)
            mapping.close()

    def test_a_reader_is_watched_on_when_the_file_was_truncated(self):
        cases = {'nothing': (os.O_RDONLY, lambda path: None), 'truncate': (os.O_RDONLY, lambda path: os.truncate(path, 100)),
                 'its own O_TRUNC': (os.O_RDONLY | os.O_TRUNC, lambda path: None)}
        for case, (flags, change) in cases.items():
            with self.subTest(case=case), Mount() as mount:
                write(mount.backing + '/f', b'a' * 100)
                reader = os.open(mount.path + '/f', flags)
                change(mount.path + '/f')
                self.assertEqual(b'0\n', mount.control('violations'))
                write(mount.backing + '/f', b'b' * 100)
                self.assertEqual(b'b', os.pread(reader, 1, 0))
                self.assertEqual(b'1\n', mount.control('violations'))
                os.close(reader)

    def test_a_reader_that_lives_on_in_a_mapping_is_watched_while_others_come(self):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        with Mount('--tpm', 'none') as mount:
            for i in range(1400):  # more than keep a descriptor when idle
                write(f'{mount.backing}/{i}', b'%d' % i)
                read(f'{mount.path}/{i}')
            for i in range(20):
                write(f'{mount.backing}/mapped{i}', b'a' * 100)
                fd = os.open(f'{mount.path}/mapped{i}', os.O_RDONLY)
                view = libc.mmap(None, 100, 1, 1, fd, 0)
                os.close(fd)
                for j in range(5):
                    read(f'{mount.path}/{j}')
                time.sleep(0.02)
                write(f'{mount.backing}/mapped{i}', b'b' * 100)
                self.assertEqual(b'b', ctypes.string_at(view, 1))
            self.assertEqual(b'20\n', mount.control('violations'))

    def test_each_writing_phase_has_its_violation_also_if_nobody_read_between_two(self):
        for options in ([], ['--no-passthrough'], ['--no-leases']):
            with self.subTest(options=options), tempfile.TemporaryDirectory(prefix='a blank ') as work, Mount(*options, work=work) as mount:
                write(mount.backing + '/f', b'x')
                for phase in range(1, 4):
                    first = os.open(mount.path + '/f', os.O_WRONLY)
                    for _ in range(2):
                        read(mount.path + '/f')
                    second = os.open(mount.path + '/f', os.O_WRONLY)
                    os.close(first)
                    read(mount.path + '/f')  # the phase goes on with the second writer
                    self.assertEqual(b'%d\n' % phase, mount.control('violations'))
                    os.close(second)
                    if options:
                        mount.settle()
                self.assertEqual(0, mount.verify().returncode)

    def test_the_policy_is_changed_by_echo(self):
        with Mount('--policy', 'builtin:none') as mount:
            write(mount.backing + '/f', b'x')
            read(mount.path + '/f')
            self.assertEqual([], mount.names())
            subprocess.run(['sh', '-c', f"echo 'measure func=FILE_CHECK' > {mount.path}/.ima/policy"], check=True)
            read(mount.path + '/f')
            self.assertEqual(['/f'], mount.names())
            self.assertEqual(b'measure func=FILE_CHECK \n', mount.control('policy'))
            bad = subprocess.run(['sh', '-c', f"echo 'measure flavour=good' > {mount.path}/.ima/policy"], stderr=subprocess.PIPE)
            self.assertNotEqual(0, bad.returncode)
            self.assertEqual(b'measure func=FILE_CHECK \n', mount.control('policy'))
            self.assertIn('flavour', mount.status()['last_policy_error'])


class Judges(unittest.TestCase):
    """evmctl on logs of every template it knows, and on boot_aggregate."""

    def test_logs_of_every_template_are_accepted(self):
        policy = 'measure func=FILE_CHECK mask=^MAY_READ\n'
        plain = ('ima-ng', 'ima-sig', 'ima-buf', 'ima-modsig', 'ima-ngv2', 'ima-sigv2', 'evm-sig')
        for template, more in (*((name, []) for name in plain), ('ima', ['--hash', 'sha1']), ('ima-ng', ['--hash', 'sha512'])):
            with self.subTest(template=template, more=more), Mount('--policy', '/dev/null', '--template', template, *more) as mount:
                subprocess.run(['sh', '-c', f"printf '{policy}' > {mount.path}/.ima/policy"], check=True)
                for i in range(5):
                    write(f'{mount.backing}/f {i}', b'%d' % i)
                    read(f'{mount.path}/f {i}')
                write(mount.work + '/log', mount.control('binary_runtime_measurements'))
                done = subprocess.run(['evmctl', 'ima_measurement', *evmctl_pcrs(mount), mount.work + '/log'],
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                self.assertEqual(0, done.returncode, done.stdout)
                self.assertEqual(6, int(mount.control('runtime_measurements_count')))
                self.assertEqual(0, mount.verify().returncode)

    def test_evmctl_computes_our_boot_aggregate(self):
        with Mount() as mount:
            tcti = mount.status()['options']['tcti']
            subprocess.run(['tpm2_pcrextend', '-T', tcti, '3:sha1=' + '22' * 20 + ',sha256=' + '11' * 32], check=True)
            os.kill(mount.daemon_pid(), signal.SIGKILL)
            mount.stop()
            mount.state = mount.work + '/state-of-its-own'
            mount.options += ['--tpm', tcti, '--pcr', '11']
            mount.start()
            first = read(mount.path + '/.ima/ascii_runtime_measurements_sha256').split(b' ')[3].decode()
            done = subprocess.run(['evmctl', 'ima_boot_aggregate', *evmctl_pcrs(mount)], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True)
            self.assertIn(first.split(':')[1], done.stdout)


class PlainUser(unittest.TestCase):
    def test_a_plain_user_measures_without_root(self):
        with Mount(user='nobody') as mount:
            def as_user(command):
                words = ['setpriv', '--reuid', 'nobody', '--regid', 'nogroup', '--clear-groups', 'sh', '-c', command]
                return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            done = as_user(f'cd {mount.path} && echo text > f && cat f && mkdir d && mv f d/g && cat d/g && cat .ima/measurements')
            self.assertEqual(0, done.returncode, done.stdout)
            self.assertIn(' /f\n', done.stdout)
            self.assertTrue(done.stdout.startswith('text\ntext\n'))
            self.assertEqual(0, as_user(f'{mount.program} verify {mount.path}').returncode)


def read_or_empty(path):
    try:
        return read(path)
    except OSError:
        return b''


if __name__ == '__main__':
    run_tests()
