# What is left of a kernel when everything but its certificate lists goes.
# Assembled for any machine; WORD is the assembler's unsigned long, and RESERVE the
# size of the room for further certificates, or 0.
	.text
	.globl _start
_start:	.long 0

	.section .rodata, "a"
	.asciz "Loading compiled-in X.509 certificates"
	.asciz "Loading compiled-in revocation X.509 certificates"
hash:	.asciz "tbs:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

	.section .init.rodata, "a"
	.balign 8
	.globl system_certificate_list
system_certificate_list:
	.incbin "trusted.der"
0:
	.if RESERVE
	.globl system_extra_cert
	.size system_extra_cert, RESERVE
system_extra_cert:
	.fill RESERVE, 1, 0
	.balign 4
	.globl system_extra_cert_used
system_extra_cert_used:
	.int 0
	.endif
	.balign 8
	.globl system_certificate_list_size
system_certificate_list_size:
	WORD 0b - system_certificate_list
	.balign 8
	.globl module_cert_size
module_cert_size:
	WORD 0b - system_certificate_list
	WORD hash, 0
	.balign 8
	.globl revocation_certificate_list
revocation_certificate_list:
	.incbin "revoked.der"
0:
	.balign 8
	.globl revocation_certificate_list_size
revocation_certificate_list_size:
	WORD 0b - revocation_certificate_list
	.balign 8
