#!/usr/bin/env python3
"""imafs run: exit statuses, the list of files against strace's, attestations, two runs alike, and what it costs."""
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import statistics
import subprocess
import tempfile
import time
import unittest
import urllib.parse

from mounting import IMAFS, Mount, need_mounts, need_private_mounts, run_tests

MAKEFILE = '''
objects = one.o two.o three.o
all: program
program: main.o libparts.a
\tgcc -o $@ main.o -L. -lparts -lm
libparts.a: $(objects)
\tar rcD $@ $(objects)
%.o: %.c parts.h
\tgcc -O1 -c -o $@ $<
generated.h: generate.sh
\t./generate.sh > $@
main.o: generated.h
clean:
\trm -f *.o *.a program generated.h
'''


def project(directory):
    """A C project with a library, a generated header and a script."""
    def put(name, text, mode=0o644):
        with open(f'{directory}/{name}', 'w') as file:
            file.write(text)
        os.chmod(f'{directory}/{name}', mode)
    put('Makefile', MAKEFILE)
    put('parts.h', '#include <stdio.h>\n#include <math.h>\ndouble one(double), two(double), three(double);\n')
    for name in ('one', 'two', 'three'):
        put(name + '.c', f'#include "parts.h"\n#include <string.h>\n#include <sys/socket.h>\ndouble {name}(double x) {{ return sin(x); }}\n')
    put('generate.sh', '#!/bin/sh\necho "#define TITLE \\"parts\\""\n', 0o755)
    put('main.c', '#include "parts.h"\n#include "generated.h"\nint main(void) { return puts(TITLE) < 0 || one(1) + two(2) + three(3) > 9; }\n')


def imafs_run(*words, cwd, check=None, **more):
    done = subprocess.run([IMAFS, 'run', *words], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120, **more)
    if check is not None and done.returncode != check:
        raise AssertionError(f'{words} ended with {done.returncode}: {done.stdout}{done.stderr}')
    return done


def straced(command, cwd):
    """Regular files that were opened for reading, or run, by their real paths; as strace tells it."""
    with tempfile.NamedTemporaryFile('r') as out:
        subprocess.run(['strace', '-f', '-y', '-qq', '-e', 'trace=%file,execve', '-o', out.name, *command], cwd=cwd, check=True, stdout=subprocess.DEVNULL)
        lines = out.read().splitlines()
    found = set()
    for line in lines:
        opened = re.search(r'open(?:at)?\(.*(O_RDONLY|O_RDWR).* = \d+<(.*)>$', line)
        ran = re.search(r'execve\("([^"]+)".* = 0$', line)
        path = opened[2] if opened else os.path.realpath(os.path.join(cwd, ran[1])) if ran else None
        if path and not path.endswith(' (deleted)'):
            found.add(path)
    return {path for path in found if os.path.exists(path) and stat.S_ISREG(os.stat(path).st_mode)}


def left_in(directory, before):
    """What is new in it and stays: another run on this machine may be under way."""
    for _ in range(200):
        left = set(os.listdir(directory)) - before
        if not left:
            break
        time.sleep(0.05)
    return left


class Run(unittest.TestCase):
    def setUp(self):
        self.work = tempfile.mkdtemp(prefix='imafs-run-', dir='/var/tmp')
        self.addCleanup(shutil.rmtree, self.work)
        project(self.work)

    def attest(self, command, *words, name='/tmp/never', form='in-toto'):
        with tempfile.NamedTemporaryFile('r') as out:
            imafs_run('--attest', out.name, '--format', form, *words, '--', *command, cwd=self.work, check=0)
            with open(out.name, encoding='utf-8', errors='surrogateescape', newline='') as file:
                return file.read()

    def test_the_exit_status_is_the_commands(self):
        for command, status in ((['true'], 0), (['sh', '-c', 'exit 7'], 7), (['no-such-command'], 127), (['./Makefile'], 126),
                                (['sh', '-c', 'kill -KILL $$'], 137), (['sh', '-c', 'kill -TERM $$'], 143)):
            with self.subTest(command=command):
                imafs_run('--', *command, cwd=self.work, check=status)

    def test_bad_words_are_one_sentence_and_leave_nothing(self):
        before = set(os.listdir('/var/lib/imafs/run')) if os.path.exists('/var/lib/imafs/run') else set()
        for words in (['--format', 'xml', '--', 'true'], [], ['--root', '/no/such', '--', 'true'], ['--policy', '/no/such', '--', 'true'],
                      ['--tpm', 'swtpm:path=/no/such', '--', 'true'], ['--subject', 'no-such', '--attest', '-', '--', 'true']):
            done = imafs_run(*words, cwd=self.work)
            self.assertNotEqual(0, done.returncode, words)
            self.assertRegex(done.stderr, r'^imafs: .*\n$')
        self.assertEqual(before, set(os.listdir('/var/lib/imafs/run')))

    def test_an_attestation_without_a_place_is_said_before_the_command_runs(self):
        for place in ('/no/such/file', self.work, 'Makefile/x'):
            done = imafs_run('--attest', place, '--', 'touch', 'ran', cwd=self.work, check=2)
            self.assertRegex(done.stderr, r"^imafs: cannot write '.*\n$")
            self.assertFalse(os.path.exists(self.work + '/ran'))

    def test_a_signal_ends_the_command_and_leaves_nothing(self):
        for number, status in ((signal.SIGTERM, 143), (signal.SIGHUP, 129)):
            run = subprocess.Popen([IMAFS, 'run', '--', 'sh', '-c', 'echo up; exec sleep 100'], cwd=self.work, stdout=subprocess.PIPE, text=True)
            self.assertEqual('up\n', run.stdout.readline())
            run.send_signal(number)
            self.assertEqual(status, run.wait(20))
            run.stdout.close()
        # Ctrl-C goes to all of a terminal's foreground group.
        run = subprocess.Popen([IMAFS, 'run', '--', 'sh', '-c', 'echo up; exec sleep 100'], cwd=self.work, stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
        self.assertEqual('up\n', run.stdout.readline())
        os.killpg(run.pid, signal.SIGINT)
        self.assertEqual(130, run.wait(20))
        run.stdout.close()
        self.assertNotIn(self.work, subprocess.run(['pgrep', '-af', 'sleep 100'], stdout=subprocess.PIPE, text=True).stdout)
        with open('/proc/mounts') as mounts:
            self.assertNotIn('/var/lib/imafs/run', mounts.read())

    def test_an_empty_run_leaves_no_lock(self):
        os.makedirs('/run/imafs-0', mode=0o700, exist_ok=True)
        # In a directory of its own, where nobody else's locks come and go.
        script = ('mount -t tmpfs -o mode=700 none /run/imafs-0 && "$0" run -- ls /run/imafs-0 || exit 1; '
                  'for i in $(seq 200); do test -z "$(ls /run/imafs-0)" && exit 0; sleep 0.05; done; ls /run/imafs-0; exit 2')
        done = subprocess.run(['unshare', '--mount', 'sh', '-c', script, IMAFS], cwd=self.work, stdout=subprocess.PIPE, text=True)
        self.assertEqual(0, done.returncode, done.stdout)
        self.assertIn('pcr10.lock', done.stdout)  # it had one

    def test_an_empty_run_is_short(self):
        # How long a start takes meanwhile says how busy the machine is; the fastest of each is what others' load distorts least.
        runs, starts = [], []
        for _ in range(10):
            before = time.monotonic()
            imafs_run('--', 'true', cwd=self.work, check=0)
            runs.append(time.monotonic() - before)
            mount = Mount(backing=self.work)
            before = time.monotonic()
            with mount:
                starts.append(time.monotonic() - before)
        self.assertLess(min(runs), 2.5 * min(starts) + 0.05, (runs, starts))

    def test_a_signal_at_any_moment_leaves_nothing(self):
        os.makedirs('/var/lib/imafs/run', exist_ok=True)
        before = set(os.listdir('/var/lib/imafs/run'))
        for number in (signal.SIGINT, signal.SIGTERM):
            for wait in range(2, 62, 5):
                run = subprocess.Popen([IMAFS, 'run', '--', 'sleep', '100'], cwd=self.work, start_new_session=True)
                time.sleep(wait / 1000)
                os.killpg(run.pid, number)
                self.assertIn(run.wait(20), (-number, 128 + number))
                # A directory goes last, when its daemon and its TPM have ended.
                self.assertEqual(set(), left_in('/var/lib/imafs/run', before), wait)

    def test_what_is_left_in_the_background_ends_too(self):
        before = time.monotonic()
        imafs_run('--', 'sh', '-c', 'sleep 100 & sleep 100 &', cwd=self.work, check=0)
        self.assertLess(time.monotonic() - before, 30)

    def test_the_command_sees_its_directory_a_private_tmp_and_no_way_out(self):
        done = imafs_run('--', 'sh', '-c', 'pwd; echo x > /tmp/imafs-run-probe; ls /tmp; cat .ima/status 2>&1 | head -1; findmnt -no FSTYPE /; ls -d /proc/self',
                         cwd=self.work, check=0)
        self.assertEqual([self.work, 'imafs-run-probe'], done.stdout.splitlines()[:2])
        self.assertIn('fuse.imafs', done.stdout)
        self.assertIn('/proc/self', done.stdout)
        self.assertFalse(os.path.exists('/tmp/imafs-run-probe'))
        here = tempfile.mkdtemp(prefix='imafs-run-')
        self.addCleanup(shutil.rmtree, here)
        os.makedirs(here + '/deep/er')
        done = imafs_run('--attest', '-', '--format', 'text', '--', 'sh', '-c', 'pwd; echo made > out; cat out', cwd=here + '/deep/er', check=0)
        self.assertIn('  ' + here + '/deep/er/out', done.stdout)
        self.assertTrue(os.path.exists(here + '/deep/er/out'))

    def test_the_list_is_straces(self):
        expected = straced(['make', '-s'], self.work)
        subprocess.run(['make', '-s', 'clean'], cwd=self.work, check=True)
        files = json.loads(self.attest(['make', '-s'], '--subject', 'program'))['predicate']['monitorLog']['fileAccess']
        found = {one['name'] for one in files}
        # Differences: temporary files, which are not there any more at the end, have no name in the attestation.
        # What the kernel opens for an execve is in no trace: the loader, and the interpreter of a script.
        by_the_kernel = {os.path.realpath(path) for path in ('/lib64/ld-linux-x86-64.so.2', '/bin/sh')}
        inside = {path for path in expected if not path.startswith(('/tmp/', '/proc/', '/sys/', '/dev/'))}
        self.assertEqual(set(), inside - found, 'files that strace saw and we did not')
        self.assertEqual(set(), found - inside - by_the_kernel, 'files that we saw and strace did not')
        self.assertIn(self.work + '/generated.h', found)
        self.assertIn(self.work + '/one.o', found)
        for one in files:  # what the build did not make has one state
            if not one['name'].startswith(self.work) or one['name'].endswith('.c'):
                done = subprocess.run(['sha256sum', one['name']], check=True, stdout=subprocess.PIPE, text=True)
                self.assertEqual(done.stdout.split()[0].lstrip('\\'), one['digest']['sha256'])

    def test_two_runs_are_alike(self):
        for form in ('in-toto', 'slsa', 'spdx', 'text'):
            texts = []
            for _ in range(2):
                subprocess.run(['make', '-s', 'clean'], cwd=self.work, check=True)
                text = self.attest(['make', '-s', '-j2'], '--subject', 'program', form=form)
                text = re.sub(r'"urn:uuid:[0-9a-f-]{36}"', '""', text)  # of an SPDX document: each has its own
                texts.append(re.sub(r'"\d{4}-\d\d-\d\dT[\d:]+Z"', '""', text))
            self.assertEqual(texts[0], texts[1])

    def test_names_are_the_files_own_in_every_form(self):
        contents = {b'a b': 'one', b'a_b': 'one', b'a  b': 'one', b'plain': 'two', b' before and after ': '3', b'new\nline': '4', b'back\\slash': '5',
                    b'per%20cent': '6', b'quote"\'': '7', '\u540d\u2028\u202e'.encode(): '8', b'\xff\xfe': '9', b'*star': '10', b'tab\t': '11', b'-n': '12',
                    b'my dir/in side': '13', b'my_dir/in_side': '13', b'cr\r': '14', b'boot_aggregate': '15'}
        here = os.fsencode(self.work) + b'/names/'
        for name, text in contents.items():
            os.makedirs(os.path.dirname(here + name), exist_ok=True)
            with open(here + name, 'w') as file:
                file.write(text)
        expected = {here + name: hashlib.sha256(text.encode()).hexdigest() for name, text in contents.items()}
        command = ['sh', '-c', 'find names -type f -exec cat {} +']

        def name_of(descriptor):  # exactly
            uri = descriptor.get('uri')
            return urllib.parse.unquote_to_bytes(uri[len('file://'):]) if uri else descriptor['name'].encode()

        statement = json.loads(self.attest(command))
        slsa = json.loads(self.attest(command, form='slsa'))
        for descriptors in (statement['predicate']['monitorLog']['fileAccess'], slsa['predicate']['buildDefinition']['resolvedDependencies']):
            mine = [one for one in descriptors if name_of(one).startswith(here)]
            self.assertEqual(expected, {name_of(one): one['digest']['sha256'] for one in mine})
            self.assertEqual(len(expected), len(mine))
        mine = [one for one in json.loads(self.attest(command, form='spdx'))['files'] if one['fileName'].startswith('.' + self.work + '/names/')]
        found = {urllib.parse.unquote_to_bytes(one['fileName'][1:]) if 'comment' in one else one['fileName'][1:].encode(): one['checksums'][1]['checksumValue'] for one in mine}
        self.assertEqual((expected, len(expected)), (found, len(mine)))
        text = self.attest(command, form='text')
        checked = subprocess.run(['sha256sum', '--strict', '-c', '-'], input=text.encode('utf-8', 'surrogateescape'), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual((0, b''), (checked.returncode, checked.stderr), checked.stdout)
        self.assertEqual(len(expected), checked.stdout.count(b'/names/'))
        # A file that was changed after it was read is no line that fails.
        text = self.attest(['sh', '-c', 'echo one > s; cat s; sleep 0.1; echo two > s; cat s; sleep 0.1; echo three > s'], form='text')
        subprocess.run(['sha256sum', '--strict', '--quiet', '-c', '-'], input=text.encode(), check=True)
        self.assertEqual(2, text.count('# an earlier state: sha256:'))

    def test_documents_keep_to_the_published_schemas(self):
        """The rules of the specifications, in our words: which members there may be, of which type, which are required."""
        uri, digest = r'^[a-zA-Z][a-zA-Z0-9+.-]*:[^\s]+$', {'sha1': 40, 'sha256': 64, 'sha384': 96, 'sha512': 128}
        stamp = r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$'

        def keep_to(value, rules, place):
            """rules: member -> (required, check); a member that is not in the rules is an error."""
            self.assertIsInstance(value, dict, place)
            self.assertEqual(set(), set(value) - set(rules), place)
            for member, (required, check) in rules.items():
                if member in value:
                    check(value[member], f'{place}.{member}')
                else:
                    self.assertFalse(required, f'{place}.{member} is missing')

        def text(value, place, pattern=r'(?s)^.+$'):
            self.assertIsInstance(value, str, place)
            self.assertRegex(value, pattern, place)

        def matches(pattern):
            return lambda value, place: text(value, place, pattern)

        def list_of(check):
            def each(value, place):
                self.assertIsInstance(value, list, place)
                for i, one in enumerate(value):
                    check(one, f'{place}[{i}]')
            return each

        def anything(value, place):
            self.assertIsInstance(value, dict, place)

        def digests(value, place):
            self.assertTrue(value, place)
            for algorithm, text_of_it in value.items():
                self.assertRegex(text_of_it, f'^[0-9a-f]{{{digest[algorithm]}}}$', place)

        def descriptor(value, place):
            keep_to(value, {'name': (False, text), 'uri': (False, matches(uri)), 'digest': (False, digests), 'content': (False, text), 'downloadLocation': (False, text),
                            'mediaType': (False, text), 'annotations': (False, anything)}, place)
            self.assertTrue({'uri', 'digest', 'content'} & set(value), place)

        def subject(value, place):
            descriptor(value, place)
            self.assertIn('digest', value, place)  # of a subject it is required

        def statement(predicate_type, predicate):
            return {'_type': (True, matches('^https://in-toto.io/Statement/v1$')), 'subject': (True, list_of(subject)),
                    'predicateType': (True, matches('^' + re.escape(predicate_type) + '$')), 'predicate': (True, lambda value, place: keep_to(value, predicate, place))}

        def has(rules):
            return lambda value, place: keep_to(value, rules, place)

        trace = {'monitor': (True, has({'type': (True, matches(uri)), 'configSource': (False, anything), 'tracePolicy': (False, anything)})),
                 'monitoredProcess': (True, has({'hostID': (True, matches(uri)), 'type': (True, matches(uri)), 'event': (True, text)})),
                 'monitorLog': (True, has({'process': (False, list_of(anything)), 'network': (False, list_of(anything)), 'fileAccess': (False, list_of(descriptor))})),
                 'metadata': (False, has({'buildStartedOn': (False, matches(stamp)), 'buildFinishedOn': (False, matches(stamp))}))}
        provenance = {'buildDefinition': (True, has({'buildType': (True, matches(uri)), 'externalParameters': (True, anything), 'internalParameters': (False, anything),
                                                     'resolvedDependencies': (False, list_of(descriptor))})),
                      'runDetails': (True, has({'builder': (True, has({'id': (True, matches(uri)), 'version': (False, anything), 'builderDependencies': (False, list_of(descriptor))})),
                                                'metadata': (False, has({'invocationId': (False, text), 'startedOn': (False, matches(stamp)), 'finishedOn': (False, matches(stamp))})),
                                                'byproducts': (False, list_of(descriptor))}))}
        checksum = has({'algorithm': (True, matches('^(SHA1|SHA224|SHA256|SHA384|SHA512|MD5|SHA3-256)$')), 'checksumValue': (True, matches('^[0-9a-f]+$'))})
        spdx_id = matches(r'^SPDXRef-[a-zA-Z0-9.-]+$')
        document = {'spdxVersion': (True, matches('^SPDX-2.3$')), 'dataLicense': (True, matches('^CC0-1.0$')), 'SPDXID': (True, matches('^SPDXRef-DOCUMENT$')), 'name': (True, text),
                    'documentNamespace': (True, matches(r'^[a-zA-Z][a-zA-Z0-9+.-]*:[^\s#]+$')), 'comment': (False, text),
                    'creationInfo': (True, has({'created': (True, matches(stamp)), 'creators': (True, list_of(matches(r'^(Tool|Person|Organization): .+$'))), 'comment': (False, text),
                                                'licenseListVersion': (False, text)})),
                    'files': (False, list_of(has({'SPDXID': (True, spdx_id), 'fileName': (True, matches(r'(?s)^\./.*$')), 'checksums': (True, list_of(checksum)), 'comment': (False, text),
                                                  'licenseConcluded': (False, text), 'copyrightText': (False, text)}))),
                    'relationships': (False, list_of(has({'spdxElementId': (True, spdx_id), 'relatedSpdxElement': (True, spdx_id), 'relationshipType': (True, matches('^DESCRIBES$'))})))}
        for words in (('--subject', 'Makefile'), ()):
            command = ['sh', '-c', 'cat Makefile; echo x > t; cat t; rm t']
            keep_to(json.loads(self.attest(command, *words)), statement('https://in-toto.io/attestation/runtime-trace/v0.1', trace), 'in-toto')
            keep_to(json.loads(self.attest(command, *words, form='slsa')), statement('https://slsa.dev/provenance/v1', provenance), 'slsa')
            made = [json.loads(self.attest(command, *words, form='spdx')) for _ in range(2)]
            for one in made:
                keep_to(one, document, 'spdx')
                for file in one['files']:
                    self.assertEqual('SHA1', file['checksums'][0]['algorithm'])  # every file has that one
                self.assertEqual(sorted(file['SPDXID'] for file in one['files']), sorted(relation['relatedSpdxElement'] for relation in one['relationships']))
            self.assertNotEqual(made[0]['documentNamespace'], made[1]['documentNamespace'])

    def test_in_toto_and_slsa_field_rules(self):
        statement = json.loads(self.attest(['make', '-s'], '--subject', 'program'))
        self.assertEqual({'_type', 'subject', 'predicateType', 'predicate'}, set(statement))
        self.assertEqual(('https://in-toto.io/Statement/v1', 'https://in-toto.io/attestation/runtime-trace/v0.1'),
                         (statement['_type'], statement['predicateType']))
        predicate = statement['predicate']
        for required in ('monitor', 'monitoredProcess', 'monitorLog'):
            self.assertIn(required, predicate)
        for value in (predicate['monitor']['type'], predicate['monitoredProcess']['hostID'], predicate['monitoredProcess']['type']):
            self.assertRegex(value, r'^[a-z][a-z0-9+.-]*:\S+$')  # a URI
        self.assertEqual('make -s', predicate['monitoredProcess']['event'])
        self.assertIn('network', predicate['monitor']['tracePolicy']['notCovered'])
        subprocess.run(['make', '-s', 'clean'], cwd=self.work, check=True)
        slsa = json.loads(self.attest(['make', '-s'], '--subject', 'program', form='slsa'))
        self.assertEqual('https://slsa.dev/provenance/v1', slsa['predicateType'])
        definition, details = slsa['predicate']['buildDefinition'], slsa['predicate']['runDetails']
        self.assertRegex(definition['buildType'], r'^[a-z]+:\S+$')
        self.assertEqual(['make', '-s'], definition['externalParameters']['command'])
        self.assertRegex(details['builder']['id'], r'^[a-z]+:\S+$')
        for descriptor in statement['subject'] + slsa['subject'] + predicate['monitorLog']['fileAccess'] + definition['resolvedDependencies']:
            self.assertTrue(descriptor['name'])
            self.assertRegex(descriptor['digest']['sha256'], r'^[0-9a-f]{64}$')
        for stamp in predicate['metadata'].values():
            self.assertRegex(stamp, r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$')
        spdx = json.loads(self.attest(['true'], form='spdx'))
        self.assertEqual(('SPDX-2.3', 'CC0-1.0', 'SPDXRef-DOCUMENT'), (spdx['spdxVersion'], spdx['dataLicense'], spdx['SPDXID']))
        self.assertEqual(len(spdx['files']), len({file['SPDXID'] for file in spdx['files']}))
        # The rules of SPDX's own validator: a SHA1 for each file, names that begin with "./", known algorithms.
        for file in spdx['files']:
            self.assertRegex(file['fileName'], r'^\./')
            self.assertEqual(['SHA1', 'SHA256'], [one['algorithm'] for one in file['checksums']])
            with open(file['fileName'][1:], 'rb') as content:
                data = content.read()
            self.assertEqual([hashlib.sha1(data).hexdigest(), hashlib.sha256(data).hexdigest()], [one['checksumValue'] for one in file['checksums']])
        states = json.loads(self.attest(['sh', '-c', 'echo one > s; cat s; sleep 0.1; echo two > s; cat s'], form='spdx'))
        self.assertEqual([hashlib.sha1(b'two\n').hexdigest()],
                         [file['checksums'][0]['checksumValue'] for file in states['files'] if file['fileName'].endswith('/s')])
        self.assertIn('an earlier state: sha256:' + hashlib.sha256(b'one\n').hexdigest() + f' {self.work}/s', states['comment'])
        for text in (states['comment'], self.attest(['true'], form='text')):
            self.assertIn('network', text)

    def test_it_costs_far_less_than_strace(self):
        build = ['sh', '-c', 'for i in 1 2 3 4 5 6; do make -s clean; make -s; done']
        times = {'bare': [], 'imafs': [], 'strace': []}
        for _ in range(3):
            for name, words in (('bare', []), ('imafs', [IMAFS, 'run', '--']), ('strace', ['strace', '-f', '-qq', '-e', 'trace=%file,execve', '-o', '/dev/null'])):
                before = time.monotonic()
                subprocess.run(words + build, cwd=self.work, check=True)
                times[name].append(time.monotonic() - before)
        ratio = {name: statistics.median(a / b for a, b in zip(times[name], times['bare'])) for name in times}
        print(f'in times of the bare build: imafs run {ratio["imafs"]:.2f}, strace {ratio["strace"]:.2f}', flush=True)
        self.assertLess(ratio['imafs'], ratio['strace'])


if __name__ == '__main__':
    need_mounts()
    need_private_mounts()
    run_tests()
