# dh --with modsign, or Build-Depends: dh-sequence-modsign.
use strict;
use warnings;
use Debian::Debhelper::Dh_Lib;

# After dh_strip, which makes the debug packages, and before dh_md5sums. The sequence of
# Architecture: all has no dh_strip; every sequence has dh_installdeb.
insert_before('dh_installdeb', 'dh_modsign');

1;
