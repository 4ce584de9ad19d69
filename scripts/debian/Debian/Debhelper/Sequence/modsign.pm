# dh --with modsign, or Build-Depends: dh-sequence-modsign.
use strict;
use warnings;
use Debian::Debhelper::Dh_Lib;

# Behind dh_strip, which makes the debug packages, and before dh_md5sums. Packages
# of Architecture: all have no dh_strip in their sequence; dh_installdeb they all have.
insert_before('dh_installdeb', 'dh_modsign');

1;
