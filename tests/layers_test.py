#!/usr/bin/env python3
"""Includes point down only: app may use fs and tpm, both may use core, fs and tpm know nothing of each other."""
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BELOW = {'core': {'core'}, 'tpm': {'tpm', 'core'}, 'fs': {'fs', 'core'}, 'app': {'app', 'fs', 'tpm', 'core'}}
FOREIGN = {'core': ('fuse', 'tss2', 'CLI', 'spdlog'), 'tpm': ('fuse', 'CLI', 'spdlog'), 'fs': ('tss2', 'CLI', 'spdlog'), 'app': ()}
# Headers without a source of their own name.
HEADERS = {'core': 'bytes check guarded log_journal log_lock pcr_extender result unique_fd file_version worker_pool',
           'tpm': 'tpm_connection swtpm_process tpm_selection', 'fs': 'control_dir control_file', 'app': 'exit_code installed_policy version'}


def layers():
    """The layer of each source, by the targets of CMakeLists.txt, and of each header by its source."""
    text = open(ROOT + '/CMakeLists.txt').read()
    layer = {}
    for name in BELOW:
        sources = re.search(r'add_library\(imafs_%s STATIC(.*?)\)' % name, text, re.S).group(1)
        for source in re.findall(r'src/(\w+)\.cpp', sources):
            layer[source] = name
    layer['main'] = 'app'
    for name, headers in HEADERS.items():
        for header in headers.split():
            layer.setdefault(header, name)
    return layer


def main():
    layer, wrong = layers(), []
    files = [f'src/{name}' for name in os.listdir(ROOT + '/src')] + [f'include/imafs/{name}' for name in os.listdir(ROOT + '/include/imafs')]
    for path in sorted(files):
        stem = os.path.basename(path).split('.')[0]
        if stem not in layer:
            # A private header belongs to the source that has its name as a beginning, or to who includes it.
            users = {layer.get(os.path.basename(user).split('.')[0]) for user in files
                     if user.endswith('.cpp') and f'{stem}.h"' in open(f'{ROOT}/{user}').read()}
            users.discard(None)
            if len(users) != 1:
                wrong.append(f'{path}: in no layer, or in several: {users}')
                continue
            layer[stem] = users.pop()
        for number, line in enumerate(open(f'{ROOT}/{path}'), 1):
            included = re.match(r'#include [<"](?:imafs/)?([\w/.+-]+)[>"]', line)
            if not included:
                continue
            name = included.group(1)
            target = layer.get(os.path.basename(name).split('.')[0]) if line.startswith('#include "') else None
            if name == 'imafs/pcr_extender.h' or name == 'pcr_extender.h':
                target = 'core'  # the one abstract seam: declared below, implemented in tpm
            if target and target not in BELOW[layer[stem]]:
                wrong.append(f'{path}:{number}: {layer[stem]} includes {name} of {target}')
            if any(name.startswith(library) for library in FOREIGN[layer[stem]]) and line.startswith('#include <'):
                wrong.append(f'{path}:{number}: {layer[stem]} includes {name}')
    print('\n'.join(wrong) or f'{len(files)} files keep to their layers')
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
