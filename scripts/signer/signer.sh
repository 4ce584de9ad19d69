#!/bin/sh
# Signs for modsign --key exec:./signer.sh with the private key in the file $SIGNER_KEY.
read -r _ # modsign's hello
echo '{"message_type":"hello","version":1,"max_in_flight":1}'
request='^\{"message_type":"(module|digest)","id":([0-9]+),"hash":"([^"]+)","digest":"([^"]+)".*'
sed -uE "s/$request/\\2 \\3 \\4/" | while read -r id hash digest; do
	signature=$(echo "$digest" | tr a-f A-F | basenc -d --base16 |
		openssl pkeyutl -sign -inkey "$SIGNER_KEY" -pkeyopt "digest:$hash" | base64 -w 0)
	if [ -n "$signature" ]; then
		echo "{\"id\":$id,\"signature\":\"$signature\"}"
	else
		echo "{\"id\":$id,\"error\":\"openssl cannot sign\"}"
	fi
done
