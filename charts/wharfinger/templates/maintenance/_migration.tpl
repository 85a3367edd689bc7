{{- define "wharfinger.migrationName" -}}
{{ include "wharfinger.fullname" . }}-migrate-{{ .Release.Revision }}-{{ include "wharfinger.migration" . | sha256sum | trunc 8 }}
{{- end -}}

{{/* It has no deadline: an index over a large table takes its time, and what pods wait for is tried again for hours. */}}
{{- define "wharfinger.migration" -}}
backoffLimit: 100
template:
  metadata:
    {{- include "wharfinger.podMetadata" (list $ "migrate" dict) | nindent 4 }}
  spec:
    {{- include "wharfinger.podSpec" (list $ "migrate") | nindent 4 }}
    restartPolicy: OnFailure
    {{- include "wharfinger.placement" .Values.migrate | nindent 4 }}
    containers:
      - name: migrate
        image: {{ include "wharfinger.image" (list $ .Values.image.broker) }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        args:
          - migrate
          # helm rollback starts the Job of the release before anew.
          - --allow-newer
          - --admit-key
          - /etc/wharf/admin/{{ .Values.adminKey.key }}
          {{- if or .Values.database.createLogins .Values.evaluation.enabled }}
          - --logins
          - /etc/wharf/logins
          {{- end }}
        {{- include "wharfinger.settingsFrom" . | nindent 8 }}
        env:
          {{- include "wharfinger.env" (list $ .Values.database.ownerUrlKey dict) | nindent 10 }}
        resources:
          {{- toYaml .Values.migrate.resources | nindent 10 }}
        securityContext:
          {{- include "wharfinger.containerSecurityContext" . | nindent 10 }}
        volumeMounts:
          {{- include "wharfinger.mounts" (list $ false) | nindent 10 }}
          - name: files
            mountPath: /srv/wharf
          - name: admin-key
            mountPath: /etc/wharf/admin
            readOnly: true
          {{- if or .Values.database.createLogins .Values.evaluation.enabled }}
          - name: logins
            mountPath: /etc/wharf/logins
            readOnly: true
          {{- end }}
    volumes:
      {{- include "wharfinger.volumes" (list $ false true) | nindent 6 }}
      - name: admin-key
        secret:
          secretName: {{ include "wharfinger.adminKeySecret" . }}
      {{- if or .Values.database.createLogins .Values.evaluation.enabled }}
      - name: logins
        secret:
          secretName: {{ include "wharfinger.databaseSecret" . }}
          items:
            {{- range $role, $key := dict "wharf_api" .Values.database.apiUrlKey "wharf_relay" .Values.database.relayUrlKey "wharf_worker" .Values.database.workerUrlKey "wharf_cleanup" .Values.database.cleanupUrlKey }}
            {{- if or (ne $role "wharf_relay") $.Values.queue.enabled }}
            - key: {{ $key }}
              path: {{ $role }}
            {{- end }}
            {{- end }}
      {{- end }}
{{- end -}}
