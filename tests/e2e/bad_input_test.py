"""What cannot work says so in one sentence, with its own exit status, and leaves nothing behind."""
import os
import signal
import subprocess
import time
import unittest

from mounting import IMAFS, Mount, run_tests

USAGE, MOUNTPOINT, BACKING, POLICY, TPM, PCR, STATE, NO_SWTPM, FIT = 2, 3, 4, 5, 6, 7, 8, 9, 10


def processes():
    """Names and arguments of all processes."""
    found = {}
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open(f'/proc/{pid}/cmdline', 'rb') as command:
                found[pid] = command.read().decode(errors='replace')
        except OSError:
            pass
    return found


class BadInput(unittest.TestCase):
    def setUp(self):
        self.mount = Mount()
        self.addCleanup(self.mount.__exit__)

    def refused(self, status, word, *options, mountpoint=None, backing=None, environment=None, lines=1):
        work = self.mount.work
        words = [IMAFS, mountpoint or self.mount.path, '--backing', backing or self.mount.backing, '--state', self.mount.state, *options]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60, env=environment)
        self.assertEqual(status, done.returncode, done.stderr)
        self.assertIn(word, done.stderr)
        self.assertTrue(done.stderr.startswith('imafs: '), done.stderr)
        self.assertEqual(lines, done.stderr.count('\n'), done.stderr)
        with open('/proc/self/mountinfo') as mounts:
            self.assertNotIn(work, mounts.read())
        self.assertEqual([], [command for command in processes().values() if work in command and 'python' not in command])

    def test_usage(self):
        self.refused(USAGE, '--nonsense', '--nonsense')
        self.refused(USAGE, 'deny or continue', '--tpm-error', 'maybe')
        self.refused(USAGE, 'flavour', '-o', 'flavour=good')
        done = subprocess.run([IMAFS], stderr=subprocess.PIPE, text=True)
        self.assertEqual((USAGE, 1), (done.returncode, done.stderr.count('\n')))

    def test_directories(self):
        file = self.mount.work + '/file'
        open(file, 'w').close()
        self.refused(MOUNTPOINT, 'No such file', mountpoint=self.mount.work + '/none')
        self.refused(MOUNTPOINT, 'not a directory', mountpoint=file)
        self.refused(BACKING, 'No such file', backing=self.mount.work + '/none')
        self.refused(BACKING, 'not a directory', backing=file)

    def test_policies(self):
        policy = self.mount.work + '/policy'
        self.refused(POLICY, 'No such file', '--policy', policy)
        self.refused(POLICY, 'none, tcb', '--policy', 'builtin:nonsense')
        with open(policy, 'w') as file:
            file.write('# fine\nmeasure func=FILE_CHEK\n')
        self.refused(POLICY, 'policy:2:14: ', '--policy', policy, lines=4)
        open(policy, 'w').close()
        self.refused(POLICY, 'no rule', '--policy', policy, '--require-policy')

    def test_tpms_and_pcrs(self):
        self.refused(TPM, 'no TPM answers', '--tpm', 'swtpm:path=/nowhere')
        self.refused(TPM, 'no TPM answers', '--tpm', 'device:/dev/none')
        self.refused(PCR, 'firmware', '--pcr', '3')
        self.refused(PCR, '--force', '--pcr', '16')
        self.refused(PCR, 'does not exist', '--pcr', '24')
        self.refused(NO_SWTPM, 'swtpm is not installed', '--tpm', 'swtpm', environment={'PATH': '/nonexistent'})

    def test_a_second_imafs_on_the_same_state_or_mount_point(self):
        with self.mount as first:
            other = first.work + '/other'
            os.mkdir(other)
            done = subprocess.run([IMAFS, other, '--backing', first.backing, '--state', first.state], stderr=subprocess.PIPE, text=True)
            self.assertEqual(STATE, done.returncode, done.stderr)
            self.assertIn(str(first.daemon_pid()), done.stderr)
            done = subprocess.run([IMAFS, first.path, '--backing', first.backing], stderr=subprocess.PIPE, text=True)
            self.assertEqual(MOUNTPOINT, done.returncode, done.stderr)
            self.assertEqual(0, first.verify().returncode)

    def test_two_logs_for_one_pcr(self):
        with self.mount as first:
            tcti = first.status()['options']['tcti']
            other = first.work + '/other'
            os.mkdir(other)
            done = subprocess.run([IMAFS, other, '--backing', first.backing, '--state', first.work + '/state2', '--tpm', tcti],
                                  stderr=subprocess.PIPE, text=True)
            self.assertEqual(STATE, done.returncode, done.stderr)
            self.assertIn('PCR 10', done.stderr)

    def test_a_journal_that_does_not_fit(self):
        with self.mount as first:
            open(first.backing + '/f', 'w').close()
            open(first.path + '/f').close()
            tcti = first.status()['options']['tcti']
            os.kill(first.daemon_pid(), 9)
            first.stop()
            subprocess.run(['tpm2_pcrextend', '-T', tcti, '10:sha256=' + '11' * 32], check=True)
            done = first.start(check=False)
            self.assertEqual(FIT, done.returncode, done.stderr)
            self.assertIn('--new-log', done.stderr)
            first.options.append('--new-log')
            first.start()
            self.assertEqual(0, first.verify().returncode)

    def test_a_mount_point_left_dead_is_named(self):
        with self.mount as first:
            os.kill(first.daemon_pid(), 9)
            for _ in range(100):
                try:
                    os.stat(first.path)
                except OSError:
                    break
            done = first.start(check=False)
            self.assertEqual(MOUNTPOINT, done.returncode, done.stderr)
            self.assertIn('umount', done.stderr)

    def test_ctrl_c_while_it_mounts(self):
        work = self.mount.work
        for wait in range(2, 62, 4):
            words = [IMAFS, self.mount.path, '--backing', self.mount.backing, '--state', self.mount.state]
            mounting = subprocess.Popen(words, start_new_session=True)
            time.sleep(wait / 1000)
            os.killpg(mounting.pid, signal.SIGINT)
            if mounting.wait(20) == 0:
                self.mount.stop()
                continue
            for _ in range(100):
                left = [command for command in processes().values() if work in command and 'python' not in command]
                if not left:
                    break
                time.sleep(0.02)
            self.assertEqual([], left, wait)
            with open('/proc/self/mountinfo') as mounts:
                self.assertNotIn(work, mounts.read())

    def test_verify_says_what_it_could_not_check(self):
        for target, text, status in (('none', None, 2), ('empty', b'', 2), ('noise', b'\x01' * 100, 1)):
            path = f'{self.mount.work}/{target}'
            if text is not None:
                with open(path, 'wb') as file:
                    file.write(text)
            done = subprocess.run([IMAFS, 'verify', path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self.assertEqual(status, done.returncode, (target, done.stdout, done.stderr))
            if done.stderr:
                self.assertIn(f"'{path}'", done.stderr)


if __name__ == '__main__':
    run_tests()
