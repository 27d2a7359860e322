# bash completion of imafs(1)
_imafs() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]}
  case $before in
    --template) mapfile -t COMPREPLY < <(compgen -W 'ima ima-ng ima-sig ima-ngv2 ima-sigv2 ima-buf ima-modsig evm-sig' -- "$word"); return ;;
    --tpm) mapfile -t COMPREPLY < <(compgen -W 'auto none swtpm device' -- "$word"); return ;;
    --tpm-error) mapfile -t COMPREPLY < <(compgen -W 'deny continue' -- "$word"); return ;;
    --hash) mapfile -t COMPREPLY < <(compgen -W 'sha1 sha256 sha384 sha512' -- "$word"); return ;;
    --bank) mapfile -t COMPREPLY < <(compgen -W 'sha256 sha384 sha512 sha1' -- "$word"); return ;;
    --format)
      local formats='text json ndjson csv cel-json'
      [ "$command" != run ] || formats='in-toto slsa spdx text'
      [ "$command" != manifest ] || formats='sha256sum keylime'
      mapfile -t COMPREPLY < <(compgen -W "$formats" -- "$word"); return ;;
  esac
  if [[ $word == -* ]]; then
    local words=
    case $command in verify | policy | log | quote | ak | manifest | run | report | top) words=$command ;; esac
    # shellcheck disable=SC2086 # no word or one
    mapfile -t COMPREPLY < <(compgen -W "$(imafs $words --help 2>/dev/null | grep -o -- '--[a-z-]*')" -- "$word")
  else
    mapfile -t COMPREPLY < <(
      [ "$COMP_CWORD" != 1 ] || compgen -W 'verify policy log quote ak manifest run report top' -- "$word"
      [ "$command" != policy ] || compgen -W 'check show load explain' -- "$word"
      compgen -f -- "$word"
    )
    compopt -o filenames 2>/dev/null
  fi
}
complete -F _imafs imafs
