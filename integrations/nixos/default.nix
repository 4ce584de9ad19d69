# Two derivations around a signature that is made elsewhere, so that no key is in the store, which
# everybody can read, and kernel and modules stay reproducible:
#
#   manifest { modules; }                    the digests of the modules, for modsign sign-digests
#   signed { modules; cert; signatures; }    a copy of the modules with these signatures
#
# modules is a package with lib/modules, such as kernel.modules or one of extraModulePackages.
# pkgs.callPackage ./default.nix { modsign = ...; } fills in the rest.
{ runCommand, modsign }:
{
  manifest = { modules, hash ? "sha512", name ? "modsign-manifest" }:
    runCommand name { } ''
      ${modsign}/bin/modsign digest --hash ${hash} --output "$out" ${modules}/lib/modules
    '';

  signed = { modules, cert, signatures, name ? "signed-modules" }:
    runCommand name { } ''
      cp -R --no-preserve=mode,ownership ${modules}/. "$out"
      ${modsign}/bin/modsign attach --owner runner --cert ${cert} --signatures ${signatures} "$out/lib/modules"
      ${modsign}/bin/modsign verify --quiet --cert ${cert} "$out/lib/modules"
    '';
}
