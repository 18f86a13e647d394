#!/usr/bin/env bash
# Two changes to the load-tester plugin in strongSwan's source tree $1: its certificates may have ECDSA keys, and it says at its end
# what CPU time it spent on issuing certificates while it connected, which is no work of IKE.
set -euo pipefail
cd "${1:?strongSwan source}/src/libcharon/plugins/load_tester"

# edit FILE EXPRESSION: it must change something, or this is another version than the one it was made for.
edit() {
  local before
  before=$(sha256sum <"$1")
  sed -i "$2" "$1"
  if [[ $(sha256sum <"$1") == "$before" ]]; then
    echo "strongSwan's $1 has changed: nothing there for '$2'; mend ${BASH_SOURCE[0]}" >&2
    exit 1
  fi
}

creds=load_tester_creds.c
edit load_tester_plugin.c 's/PRIVKEY, KEY_RSA/PRIVKEY, KEY_ECDSA/'
edit $creds '/PRIVATE_KEY, KEY_RSA,$/{N;/FROM_FILE/s/KEY_RSA/KEY_ECDSA/}'
edit $creds 's/\b\(type\|key\) != KEY_RSA/\1 != this->private->get_type(this->private)/'

edit $creds '0,/^\tuint32_t serial;/s//&\n\tlong long issue_ns;/'
edit $creds 's/^\ttime_t now;/&\n\tstruct timespec begin, end;/'
edit $creds '/generate on demand/a clock_gettime(CLOCK_THREAD_CPUTIME_ID, \&begin);'
edit $creds '/DESTROY_IF(dn)/a clock_gettime(CLOCK_THREAD_CPUTIME_ID, \&end);\
__atomic_add_fetch(\&this->issue_ns, (end.tv_sec - begin.tv_sec) * 1000000000LL + end.tv_nsec - begin.tv_nsec, __ATOMIC_RELAXED);'
edit $creds '/cas->destroy_offset/i fprintf(stderr, "load-tester issued %lld certificates in %lld ns\\n", (long long)this->serial, this->issue_ns);'
