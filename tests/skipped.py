#!/usr/bin/env python3
"""What a run of ctest skipped, and why, and once more its summary: what scripts/test ends with.

    skipped.py DIRECTORY     ctest's Testing/Temporary, with its output in `said`

A test that is skipped as a whole, and a part of one that passed: both print lines "skipped: [WHAT: ]REASON".
"""
import collections
import re
import sys


def read(path):
    try:
        with open(path, errors='replace') as file:
            return file.read()
    except OSError:
        return ''


def main(directory):
    said = read(directory + '/said')
    whole = re.findall(r'^ *\d+/\d+ Test +#\d+: (.*?) \.*\*\*\*Skipped', said, re.MULTILINE)
    reasons = collections.defaultdict(list)
    test = ''
    for line in read(directory + '/LastTest.log').splitlines():
        if start := re.fullmatch(r'\d+/\d+ Testing: (.*)', line):
            test = start[1]
        elif line.startswith('skipped: ') and line[9:] not in reasons[test]:
            reasons[test].append(line[9:])
    for test in whole:
        reasons[test] = reasons[test] or ['it does not say why']
    reasons = {test: lines for test, lines in reasons.items() if lines}
    parts = sum(len(lines) for test, lines in reasons.items() if test not in whole)
    print(f'\nSkipped: {len(whole)} tests, and {parts} parts of others' + (':' if reasons else ''))
    for test, lines in sorted(reasons.items()):
        for line in lines:
            print(f'  {test}{"" if test in whole else " (a part)"}: {line}')
    summaries = [match.start() for match in re.finditer(r'^\d+% tests passed', said, re.MULTILINE)]
    if summaries:
        print('\n' + said[summaries[-1]:].rstrip())


if __name__ == '__main__':
    main(sys.argv[1])
